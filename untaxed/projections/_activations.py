"""Linear layers whose weight gradient is born projected, for trainings in which no optimizer sees whole weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._subspace import Subspace


class _ProjectedLinear(torch.autograd.Function):
    """y = x·Wᵀ + b, with dW = dyᵀ·(x − x·U·Uᵀ); x and b get what they always get."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, subspace: Subspace) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.subspace, ctx.bias = subspace, None if bias is None else bias.dtype
        return nn.functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        inputs, weight = ctx.saved_tensors
        (given,) = gradients
        of_inputs = of_weight = of_bias = None
        rows = given.reshape(-1, given.shape[-1])
        if ctx.needs_input_grad[0]:
            of_inputs = (given @ weight.to(given.dtype)).to(inputs.dtype)
        if ctx.needs_input_grad[1]:
            seen = inputs.reshape(-1, inputs.shape[-1]).to(given.dtype)
            if len(rows) < weight.shape[0] and given.dtype == weight.dtype:
                of_weight = rows.T @ ctx.subspace.remove(seen)
            else:  # the same product, its factors in the cheaper order, or where autocast's dtype would round after it
                of_weight = ctx.subspace.remove((rows.T @ seen).to(weight.dtype))
            of_weight = of_weight.to(weight.dtype)
        if ctx.bias is not None and ctx.needs_input_grad[2]:
            of_bias = rows.sum(0).to(ctx.bias)
        return of_inputs, of_weight, of_bias, None


def projected_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None, subspace: Subspace) -> Tensor:
    r"""A linear layer whose weight gradient has no part along protected inputs.

    .. math:: y = x W^\top + b, \qquad \partial W = \partial y^\top (x - x U U^\top)

    Args:
        inputs: ``(…, inputs)``.
        weight: ``(outputs, inputs)``.
        bias: ``(outputs,)``, or None.
        subspace: What is protected of the inputs.
    """
    made: Tensor = _ProjectedLinear.apply(inputs, weight, bias, subspace)
    return made


def project_activations(model: nn.Module, subspaces: Mapping[str, Subspace]) -> Callable[[], None]:
    """Makes linear layers of a model such ones, whatever shards or steps their weights: FSDP2, ZeRO, any optimizer.

    Micro-batches, clipping and sharding need no care, as gradients are sums and right factors act on whole rows. What
    an optimizer then does to the gradient is its own: one that scales its entries leaves the protected directions.

    Args:
        model: Its forward pass is the same as before, in numbers too.
        subspaces: Layer's name -> subspace, as `Protect.subspaces` finds them.
    Returns:
        A function that makes the layers what they were.
    Raises:
        ValueError: A layer is not there, no linear one, or its `forward` is another's already.
    """
    modules = dict(model.named_modules())
    for name in subspaces:
        layer = modules.get(name)
        if not isinstance(layer, nn.Linear) or "forward" in vars(layer):
            what = "is projected already, or has another forward" if isinstance(layer, nn.Linear) else "is no nn.Linear"
            raise ValueError(f"the layer {name!r} {what}")
    for name, subspace in subspaces.items():
        layer = modules[name]
        layer.forward = partial(_forward, layer, subspace)

    def undo() -> None:
        for name in subspaces:
            if "forward" in vars(modules[name]):
                del modules[name].forward

    return undo


def _forward(layer: nn.Linear, subspace: Subspace, inputs: Tensor) -> Tensor:
    return projected_linear(inputs, layer.weight, layer.bias, subspace)
