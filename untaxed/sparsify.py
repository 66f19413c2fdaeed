"""Keeping a fraction of a tensor's entries: at random, by magnitude, or all of them. Knows no name and no model."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .counter import WORD, draw_below
from .largest import Largest, Reduce

Sparsifier = Literal["random", "magnitude", "none"]
Rescale = Literal["none", "inverse", "l1"]


def random_mask(numel: int, density: float, *, key: int, offset: int = 0, device: torch.device | str = "cpu") -> Tensor:
    r"""Keeps each entry with probability ``density``: the Bernoulli mask of DARE.

    Returns:
        bool, shape ``(numel,)``.
    Raises:
        ValueError: ``density`` is outside (0, 1].
    Example:
        >>> whole = random_mask(10_000, 0.3, key=7)
        >>> bool((random_mask(100, 0.3, key=7, offset=5_000) == whole[5_000:5_100]).all())
        True

    Source: Yu et al. 2024 (DARE), arXiv:2311.03099; Lu et al. 2024, arXiv:2405.17931, Eq. 4.
    """
    check_density(density)
    if density == 1:
        return torch.ones(numel, dtype=torch.bool, device=device)
    made = torch.empty(numel, dtype=torch.bool, device=device)
    return draw_below(keep_below(density), key, made, offset=offset)


def magnitude_mask(
    values: Tensor,
    density: float,
    *,
    key: int = 0,
    offset: int = 0,
    total: int | None = None,
    reduce: Reduce | None = None,
) -> Tensor:
    r"""Keeps the largest entries by magnitude: exactly :math:`k = \max(1, \mathrm{round}(density \cdot n))` of them.

    Found by counting, never by sorting (`untaxed.largest`); where more entries have the k-th magnitude than there is
    room for, the entries' random bits choose among them, so that neither the order of the entries nor their
    distribution over processes matters.

    Args:
        values: Any shape, finite; the local part where the tensor is sharded.
        density: Fraction kept of the whole tensor, in (0, 1].
        key: From `mask_key`, for ties.
        offset: Place of the first local entry in the whole flat tensor.
        total: Entries of the whole tensor; needed with ``reduce``.
        reduce: Sums counts over the processes that hold the other parts. Every process must call.
    Returns:
        bool, the shape of ``values``.
    Raises:
        ValueError: ``density`` is outside (0, 1].

    Source: Yadav et al. 2023 (TIES), arXiv:2306.01708; Lu et al. 2024, arXiv:2405.17931, Eq. 6.
    Differs: magnitudes are compared in float32; ties go by random bits, where sorting takes whatever comes first.
    """
    check_density(density)
    size = values.numel() if total is None else total
    if density == 1 or size == 0:
        return torch.ones_like(values, dtype=torch.bool)
    flat = values.detach().flatten()
    largest = Largest(kept_count(size, density), key=key, reduce=reduce).find(flat, offset)
    return largest.mask(flat, offset).view(values.shape)


def sparsify(
    values: Tensor,
    density: float,
    *,
    how: Sparsifier = "random",
    rescale: Rescale = "none",
    key: int = 0,
    offset: int = 0,
    total: int | None = None,
    reduce: Reduce | None = None,
) -> Tensor:
    r"""Sets all but a fraction of the entries to 0.

    .. math:: F(x)_i = r\,x_i \text{ where entry } i \text{ is kept, else } 0

    Args:
        values: Any shape.
        density: Fraction kept, in (0, 1].
        how: "random", "magnitude", or "none" (everything is kept, whatever ``density``).
        rescale: "none": :math:`r = 1`; "inverse": :math:`1/density`, which keeps the mean of a random choice; "l1":
            :math:`\lVert x\rVert_1 / \lVert F(x)\rVert_1`, which keeps the sum of magnitudes.
        key: From `mask_key`.
        offset, total, reduce: For a part of a tensor, as in `magnitude_mask`.
    Returns:
        A new tensor with the shape and dtype of ``values``.
    Raises:
        ValueError: ``density`` is outside (0, 1], or a name is unknown.
    Example:
        >>> sparsify(torch.tensor([3.0, -4.0, 1.0, 2.0]), 0.5, how="magnitude")
        tensor([ 3., -4.,  0.,  0.])
    """
    if how == "none":
        return values.clone()
    if how == "random":
        mask = random_mask(values.numel(), density, key=key, offset=offset, device=values.device).view(values.shape)
    elif how == "magnitude":
        mask = magnitude_mask(values, density, key=key, offset=offset, total=total, reduce=reduce)
    else:
        raise ValueError(f"how must be random, magnitude or none, got {how!r}")
    return rescaled(values, mask, density, rescale, reduce)


def rescaled(values: Tensor, mask: Tensor, density: float, rescale: Rescale, reduce: Reduce | None = None) -> Tensor:
    """The kept entries, rescaled as `sparsify` says; the others 0."""
    kept = torch.where(mask, values, torch.zeros_like(values))
    if rescale == "none":
        return kept
    if rescale == "inverse":
        return kept * (1 / density)
    if rescale != "l1":
        raise ValueError(f"rescale must be none, inverse or l1, got {rescale!r}")
    sums = torch.stack([values.abs().sum(dtype=torch.float64), kept.abs().sum(dtype=torch.float64)])
    whole, part = (reduce(sums) if reduce else sums).tolist()
    return kept * (whole / part) if part else kept


def check_density(density: float) -> None:
    """Raises `ValueError` for a density that keeps nothing, or more than everything."""
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], got {density}")


def kept_count(size: int, density: float) -> int:
    """How many of ``size`` entries a choice by magnitude keeps: at least one."""
    return max(1, round(density * size))


def keep_below(density: float) -> int:
    """Random bits below this keep their entry."""
    return max(1, round(density * (WORD + 1)))
