"""Inside the step: optimizers that merge their update, and the wrapper that does so around any other."""
