"""What rules are made of: weighted sums that keep exact what should be exact, and the sign election. In place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..checks import check_number
from ..counter import CHUNK
from ..sparsify import check_density

SAME = 1e-12  # weights whose sum is this near to 1 are taken to sum to 1
FAR = 1e6  # a ratio of weights from which on no vote is a tie
MOST = 1e30  # of a weight: float32, in which is calculated, ends at 3.4e38, and weights are multiplied and summed


def checked(weights: Sequence[float], models: int, name: str = "weights") -> None:
    """Raises `ValueError` unless there is one number a model that float32 can calculate with."""
    for weight in weights:
        check_number(name, weight)
        if abs(weight) > MOST:
            raise ValueError(f"{name} must be at most {MOST:g} in magnitude, got {weight:g}")
    if len(weights) != models:
        raise ValueError(f"{name} must be one a model, got {len(weights)} for {models} models")


def check_kept(weights: Sequence[float], densities: Sequence[float], models: int) -> None:
    """Raises `ValueError` unless there is a weight and a density for each model."""
    checked(weights, models)
    checked(densities, models, "densities")
    for density in densities:
        check_density(density)


def spread(value: float | Sequence[float] | None, models: int) -> tuple[float, ...]:
    """One number a model: the same for all, those given, or 1 where none is given."""
    if value is None:
        return (1.0,) * models
    return tuple(value) if isinstance(value, Sequence) else (value,) * models


def shares(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights divided by their sum.

    Raises:
        ValueError: They sum to 0.
    """
    total = math.fsum(weights)
    if total == 0:
        raise ValueError(f"weights that are normalized must not sum to 0, got {', '.join(map(str, weights))}")
    return tuple(weight / total for weight in weights)


def over_all(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights divided by the sum of their magnitudes; all 0 where they are."""
    total = math.fsum(map(abs, weights))
    return tuple(weight / total if total else 0.0 for weight in weights)


def largest(weights: Sequence[float]) -> int:
    """The place of the largest weight, the first of equal ones."""
    return max(range(len(weights)), key=lambda k: weights[k])


def of_deltas(weights: Sequence[float]) -> int | None:
    """Whose share is the largest where a base is moved by weighted deltas: a model's place, or None for the base."""
    most = largest(weights)
    return most if weights[most] > 0 and weights[most] >= 1 - math.fsum(weights) - SAME else None


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same short run of every tensor, one run after the other: temporaries stay in the cache."""
    for start in range(0, tensors[0].numel(), CHUNK):
        yield tuple(tensor[start : start + CHUNK] for tensor in tensors)


def combined(terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    r"""The weighted sum of terms, written over one of them.

    .. math:: \sum_k w_k x_k = W x_p - \sum_{k \ne p} w_k (x_p - x_k), \qquad W = \sum_k w_k

    with :math:`p` the largest weight's. So where the weights sum to 1 equal terms stay what they are to the bit, a
    single weight of 1 gives its term, and what lies close together loses no digits. Terms of weight 0 do not count.
    """
    used = [(term, weight) for term, weight in zip(terms, weights) if weight]
    if not used:
        return terms[0].zero_()
    pivot = max(range(len(used)), key=lambda k: abs(used[k][1]))
    (first, _), rest = used[pivot], used[:pivot] + used[pivot + 1 :]
    total = math.fsum(weights)
    for run, *others in pieces(first, *(term for term, _ in rest)):
        for other, (_, weight) in zip(others, rest):
            # subtracting |w| times a difference that is +0 keeps the sign of a zero
            torch.sub(*((run, other) if weight > 0 else (other, run)), out=other)
        if abs(total - 1) > SAME:
            run.mul_(total)
        for other, (_, weight) in zip(others, rest):
            run.sub_(other, alpha=abs(weight))
    return first


def only_kept(model: Tensor, base: Tensor, falls: Tensor, weight: float) -> Tensor:
    r"""The base moved towards one model where its delta is kept; the base and the model themselves where that is asked.

    Args:
        model, base: Blocks; overwritten.
        falls: Base − model where kept, 0 elsewhere.
        weight: :math:`w` in :math:`base + w (model - base)`.
    """
    kept = falls != 0
    start = base.clone()
    moved = combined([base, model], [1 - weight, weight])
    return torch.where(kept, moved, start)


def _votes(weights: Sequence[float]) -> list[float]:
    """Weights over the least of them. Of equal ones no product is rounded, so that changes which cancel sum to exactly
    0; torch fuses multiplying and adding in some entries of a tensor and not in others, and the rest would decide.
    """
    least, most = min(map(abs, weights)), max(map(abs, weights))
    return [weight / least for weight in weights] if most < FAR * least else list(weights)


def elected(
    base: Tensor, falls: Sequence[Tensor], weights: Sequence[float], *, scale: float, normalize: bool
) -> Tensor:
    r"""TIES' consensus: the base, moved by those deltas whose sign is the weighted sum's. Everything is overwritten.

    .. math:: base + \lambda \frac{\sum_{k \in A} w_k \delta_k}{\sum_{k \in A} |w_k|}, \qquad
        A = \Big\{k : \mathrm{sign}(w_k \delta_k) = \mathrm{sign}\big(\sum_j w_j \delta_j\big) \ne 0\Big\}

    Args:
        base: A block.
        falls: Base − model, :math:`-\delta_k`: so that an entry that nobody moves keeps its bits.
        weights: Not 0.
        scale: :math:`\lambda`.
        normalize: False: without the denominator.
    """
    first, *rest = _votes(weights)
    for run, *others in pieces(base, *falls):
        sign = torch.mul(others[0], first)
        for other, vote in zip(others[1:], rest):
            sign.add_(other, alpha=vote)
        sign.sign_()
        total, count = torch.zeros_like(run), torch.zeros_like(run)
        for other, weight in zip(others, weights):
            other.mul_(sign).mul_(weight).clamp_(min=0)
            total.add_(other)
            if normalize:
                count.add_(other.sign_(), alpha=abs(weight))
        if normalize:
            total.div_(count.clamp_(min=min(map(abs, weights))))  # 0 where nobody moves
        run.sub_(total.mul_(sign), alpha=scale)
    return base
