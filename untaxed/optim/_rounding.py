"""Adding small updates to weights of few bits without losing them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..counter import CHUNK, mask_key, random_bits

Rounding = Literal["nearest", "stochastic"]
UNIT = 2.0**32


def add_rounded(old: Tensor, update: Tensor, bits: Tensor) -> Tensor:
    r"""Adds and rounds up or down at random, so that the mean of the result is the sum itself.

    .. math:: P(\text{upper neighbour}) = \frac{x + u - \text{lower}}{\text{upper} - \text{lower}}

    Args:
        old: :math:`x`, in the dtype of the result: bfloat16, float16 or float32.
        update: :math:`u`, the same shape, as precise as it is known; from far below half an ulp to many ulps.
        bits: Uniform integers in [0, 2^32), the same shape, from `untaxed.counter.random_bits`.
    Returns:
        A new tensor in ``old``'s dtype: the sum where it can be written, else one of its two neighbours.
    Example:
        >>> old = torch.full((1 << 16,), 0.02, dtype=torch.bfloat16)
        >>> moved = add_rounded(old, torch.full((1 << 16,), 1e-5), random_bits(7, 1 << 16))
        >>> round(float((moved.double() - old.double()).mean()), 6)
        1e-05

    Source: Zamirai et al. 2020, arXiv:2010.06192, for the use; the probability is exact to 2^-32.
    Differs: computed in float64 with the error of the sum, not by adding bits to a float32 and cutting it, which loses
        every update below 2^-16 ulp and is wrong at powers of two.
    """
    x, u = old.double(), update.double()
    total = x + u
    part = total - x
    error = (x - (total - part)) + (u - part)  # total + error is the sum to the bit (Knuth's two-sum)
    near = total.to(old.dtype)
    above = (near.double() > total) | ((near.double() == total) & (error < 0))
    lower = torch.where(above, _neighbour(near, -torch.inf), near)
    upper = _neighbour(lower, torch.inf)
    share = ((total - lower.double()) + error) / (upper.double() - lower.double())
    chosen = torch.where(bits.double() + 0.5 < share * UNIT, upper, lower)
    return torch.where(torch.isfinite(near), chosen, near)


def added(old: Tensor, update: Tensor, rounding: Rounding, *, seed: int, name: str, step: int, offset: int) -> Tensor:
    """``old + update`` in ``old``'s dtype; float64 weights are always rounded to nearest.

    Args:
        old: The weights, the local part.
        update: In float32 or float64, the same shape.
        rounding: "nearest", or "stochastic" by `add_rounded`.
        seed, name, step: Key the random bits.
        offset: Place of the first local entry in the whole flat tensor.
    """
    if rounding == "nearest" or old.dtype == torch.float64:
        return (old.to(update.dtype) + update).to(old.dtype)
    key = mask_key(seed, name, step, "round")
    flat, change = old.flatten(), update.flatten()
    parts = [
        add_rounded(
            flat[start : start + CHUNK],
            change[start : start + CHUNK],
            random_bits(key, min(CHUNK, flat.numel() - start), offset=offset + start, device=old.device),
        )
        for start in range(0, flat.numel(), CHUNK)
    ]
    return torch.cat(parts).view(old.shape) if parts else old.clone()


def _neighbour(values: Tensor, towards: float) -> Tensor:
    """The next number of the dtype; torch has no `nextafter` for float16."""
    if values.dtype != torch.float16:
        return torch.nextafter(values, torch.full_like(values, towards))
    order = values.view(torch.int16).to(torch.int32)
    order = torch.where(order < 0, -(order & 0x7FFF), order) + (1 if towards > 0 else -1)  # in the order of the values
    return torch.where(order < 0, -order | -0x8000, order).to(torch.int16).view(torch.float16)
