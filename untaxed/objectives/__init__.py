"""Methods that act in the loss or on the data."""

from ._kl import KL as KL
