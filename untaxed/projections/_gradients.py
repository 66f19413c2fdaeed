"""Gradients of reference losses at a model's present weights, beside a training that goes on as if nothing was."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import DataError, RunFailed
from ..measuring.isolation import undisturbed
from ..optim import plain_name, wide_of
from ..weights import local, reshard, sharded
from ._losses import ReferenceSet
from ._processes import processes, shared_out, summed

Gradients = dict[str, Tensor]


def reference_gradients(model: nn.Module, sets: Sequence[ReferenceSet], *, step: int = 0) -> list[Gradients]:
    """The gradient of every set's loss, by plain parameter name: float32 or wider, the local part, new tensors.

    The model runs in evaluation mode. Its gradients so far, its modes and all random states are afterwards what they
    were. Over several processes the batches are shared out and the gradients are those of all.

    Args:
        model: Whole, under DDP the module inside, or sharded by FSDP2.
        sets: The reference sets.
        step: For messages.
    Raises:
        RunFailed: A loss is not finite; the set is named.
        DataError: A loss is no scalar with a gradient.
    """
    with _own_gradients_kept(model), undisturbed(model), torch.enable_grad():
        return [_gradient(model, one, step) for one in sets]


@contextmanager
def _own_gradients_kept(model: nn.Module) -> Iterator[None]:
    """Lends the parameters empty gradients; their own tensors, views of a DDP bucket among them, come back."""
    reshard(model)
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in kept:
            parameter.grad = None
        yield
    finally:
        reshard(model)
        for parameter, gradient in kept:
            parameter.grad = gradient


def _gradient(model: nn.Module, one: ReferenceSet, step: int) -> Gradients:
    total = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)
    for batch, counts in shared_out(one.batches):
        loss = one.loss(model, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise DataError(
                f"the loss of reference set {one.name!r} must be a scalar tensor with a gradient, got {loss!r}"
            )
        loss = loss.reshape(()) * (one.weight if counts else 0)
        loss.backward()
        total += loss.detach()
    value = float(summed(total))
    found = _taken(model)
    if math.isfinite(value) and (bad := _not_finite(found)):
        raise RunFailed(
            f"the gradient of reference set {one.name!r} is not finite in {bad!r} at step {step}, and its loss is "
            f"{value:.4g}; look at its rows, and for a loss of your own at a root or logarithm of 0"
        )
    if not math.isfinite(value):
        raise RunFailed(
            f"the loss of reference set {one.name!r} is {value} at step {step}; lower the learning rate, or look at "
            "its rows"
        )
    return found


def _not_finite(gradients: Gradients) -> str | None:
    """The first gradient that has an entry which is none; every process answers alike."""
    sums = torch.stack([gradient.sum(dtype=torch.float64).cpu() for gradient in gradients.values()])
    device = next(iter(gradients.values())).device
    broken = (~summed(sums.to(device)).isfinite()).tolist()
    return next((name for name, one in zip(gradients, broken) if one), None)


def _taken(model: nn.Module) -> Gradients:
    """Takes the gradients off the parameters, summed over the processes; FSDP2 has averaged those of its own."""
    found: Gradients = {}
    _, world = processes()
    for name, parameter in model.named_parameters():
        gradient, parameter.grad = parameter.grad, None
        if not parameter.requires_grad:
            continue
        if gradient is None:  # in no process: all run the same model
            part = local(parameter.detach())
            found[plain_name(name)] = torch.zeros_like(part, dtype=wide_of(part.dtype))
            continue
        part = local(gradient).to(wide_of(gradient.dtype))
        found[plain_name(name)] = part.mul_(world) if sharded(gradient) else summed(part)
    return found
