"""The subspace of a layer's inputs that is to be protected: eigenvectors of their covariance, by a threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Threshold = Literal["relative", "energy", "multiple_of_min", "absolute", "rank", "free_share"]
ROUNDING = 4  # times a dtype's eps: what sums in it leave of nothing, over the largest eigenvalue
USUAL = {"relative": 5e-5, "energy": 0.9, "multiple_of_min": 10.0, "absolute": 2e-2}  # see `protected_subspace`


@dataclass(frozen=True)
class Subspace:
    """A subspace of the inputs, by the smaller one of its basis and that of its complement.

    Attributes:
        basis: ``(inputs, directions)``, orthonormal columns.
        free: Whether the columns span what is free, not what is protected.
    """

    basis: Tensor
    free: bool = False

    @property
    def rank(self) -> int:
        """Of what is protected."""
        inputs, columns = self.basis.shape
        return inputs - columns if self.free else columns

    def remove(self, values: Tensor) -> Tensor:
        """The free part of rows ``(…, inputs)``: x − x·U·Uᵀ; the projector itself is never formed."""
        basis = self.basis.to(values.dtype)
        kept = (values @ basis) @ basis.mT
        return kept if self.free else values - kept


def check_threshold(threshold: str, value: float | None) -> None:
    """Raises `ValueError` for a threshold that cannot be."""
    if threshold not in get_args(Threshold):
        raise ValueError(f"threshold must be one of {', '.join(get_args(Threshold))}, got {threshold!r}")
    if value is None:
        if threshold not in USUAL:
            raise ValueError(f"threshold {threshold!r} has no usual value; give `value`")
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"value must be a finite number, got {value!r}")
    fine, words = {
        "relative": (0 < value < 1, "above 0 and below 1: a share of the largest eigenvalue"),
        "energy": (0 < value <= 1, "in (0, 1]: the share of the inputs' energy that is protected"),
        "multiple_of_min": (value >= 1, "at least 1: a multiple of the smallest eigenvalue"),
        "absolute": (value > 0, "above 0: an eigenvalue of the mean of x·xᵀ"),
        "rank": (value >= 1 and value == int(value), "a whole number of directions, at least 1"),
        "free_share": (0 < value < 1, "above 0 and below 1: the share of the directions that stay free"),
    }[threshold]
    if not fine:
        raise ValueError(f"value must be {words}, for threshold {threshold!r}, got {value}")


def protected_subspace(
    covariance: Tensor,
    *,
    threshold: Threshold = "relative",
    value: float | None = None,
    tokens: int | None = None,
    products: torch.dtype | None = None,
) -> Subspace:
    r"""The eigenvectors of :math:`C = \sum x x^\top` whose eigenvalue is above a threshold.

    ================== ============================================================ ================
    threshold          protected                                                    usual value
    ================== ============================================================ ================
    relative           eigenvalues of at least value · the largest                  5e-5 (NSPO)
    energy             the fewest that hold this share of the sum                   0.9 (GPM: 0.95)
    multiple_of_min    those above value · the smallest                             10 (Adam-NSCL)
    absolute           eigenvalues of C / tokens of at least the value              2e-2 (AlphaEdit)
    rank               that many                                                    -
    free_share         all but that share of the directions                         -
    ================== ============================================================ ================

    Args:
        covariance: ``(inputs, inputs)``, symmetric; the eigenvectors are found in float64.
        threshold: How the eigenvalues are cut.
        value: Where; None: the usual value.
        tokens: How many inputs were summed; needed for "absolute".
        products: The dtype in which the products of inputs were taken; None: the covariance's.
    Raises:
        ValueError: A setting is out of range, a value is not finite, there is nothing to protect (C is zero), or the
            inputs span fewer directions than "rank" or "free_share" would protect.
    """
    check_threshold(threshold, value)
    value = USUAL[threshold] if value is None else float(value)
    if not bool(torch.isfinite(covariance).all()):
        raise ValueError("the covariance of the inputs is not finite")
    eigenvalues, vectors = torch.linalg.eigh(covariance.double())
    falling = eigenvalues.clamp(min=0).flip(0)
    inputs = len(falling)
    if threshold == "rank" and value > inputs:
        raise ValueError(f"rank {value:g} is asked for, and the layer has {inputs} inputs")
    if not inputs or falling[0] == 0:
        raise ValueError("the inputs are all zero: there is nothing to protect")
    rank = _rank(falling, threshold, value, tokens)
    if threshold in ("rank", "free_share") and rank > (spanned := _spanned(covariance, products or covariance.dtype)):
        raise ValueError(
            f"{rank} directions are to be protected, and the inputs span {spanned} of {inputs} beyond rounding; give "
            "more and more varied prompts, or protect fewer"
        )
    columns = vectors.to(covariance.dtype)
    if rank <= inputs - rank:
        return Subspace(columns[:, inputs - rank :].contiguous())
    return Subspace(columns[:, : inputs - rank].contiguous(), free=True)


def _spanned(covariance: Tensor, products: torch.dtype) -> int:
    """How many directions the inputs have beyond rounding; every input in its own scale, as some are far larger."""
    lengths = covariance.diagonal().double().clamp(min=0).sqrt()
    scale = torch.where(lengths > 0, 1 / lengths, 0.0)
    eigenvalues = torch.linalg.eigvalsh(covariance.double() * scale * scale.unsqueeze(-1))
    return int((eigenvalues > ROUNDING * torch.finfo(products).eps * float(eigenvalues[-1])).sum())


def _rank(falling: Tensor, threshold: str, value: float, tokens: int | None) -> int:
    """How many of the eigenvalues, the largest first, are protected."""
    inputs = len(falling)
    noise = float(falling[0]) * inputs * torch.finfo(torch.float64).eps
    if threshold == "rank":
        return int(value)
    if threshold == "free_share":
        return inputs - max(1, round(value * inputs))
    if threshold == "energy":
        share = falling.cumsum(0) / falling.sum()
        return min(inputs, int((share < value * (1 - 1e-12)).sum()) + 1)
    if threshold == "multiple_of_min":
        return int((falling > max(value * float(falling[-1]), noise)).sum())
    if threshold == "absolute":
        if not tokens:
            raise ValueError("threshold 'absolute' needs the number of tokens behind the covariance")
        return int((falling / tokens >= value).sum())
    return int((falling >= max(value * float(falling[0]), noise)).sum())
