"""The angles between several models' tensors: inner products summed up block by block, and the arc that follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from ._combining import checked, pieces
from ._sums import Sums

PARALLEL = 1e-4  # radians from 0 or pi; there the arc and the chord differ by less than float32 can hold


class Angles:
    """A survey of the inner products of all pairs of models, or of their deltas.

    Args:
        models: How many.
        total: Entries of the whole tensor.
        deltas: True: of what they are beyond the base.
    """

    def __init__(self, models: int, total: int, *, deltas: bool) -> None:
        self._models, self._deltas = models, deltas
        self._pairs = list(combinations_with_replacement(range(models), 2))
        self._sums = Sums(len(self._pairs), total)
        self.products: list[list[float]] = []  # (models, models), after the pass

    def take(self, models: Sequence[Tensor], base: Tensor | None, offset: int) -> None:
        given, start = [*models, base] if self._deltas and base is not None else models, offset
        for parts in pieces(*given):
            wide = [part.to(torch.float64, copy=True) for part in parts]
            if self._deltas:
                wide = [each.sub_(wide[-1]) for each in wide[:-1]]
            self._sums.add(start, [wide[i] * wide[j] for i, j in self._pairs])
            start += parts[0].numel()

    def again(self) -> bool:
        self.products = [[0.0] * self._models for _ in range(self._models)]
        for (i, j), total in zip(self._pairs, self._sums.total()):
            self.products[i][j] = self.products[j][i] = total
        return False


def check_shares(weights: Sequence[float], models: int) -> None:
    """Raises `ValueError` unless there is one weight a model, none below 0 and one above."""
    checked(weights, models)
    if min(weights, default=0) < 0 or not any(weights):
        raise ValueError(f"weights of an arc must be at least 0, and one above, got {', '.join(map(str, weights))}")


def along_the_arc(products: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """The coefficients of spherical interpolation, one model after the other, from all inner products."""
    found, so_far = [0.0] * len(weights), 0.0
    for k, weight in enumerate(weights):
        so_far += weight
        if not weight:
            continue
        first, second = _arc(_cosine_to(products, found, k), weight / so_far)
        found = [first * each for each in found]
        found[k] = second
    return found


def _cosine_to(products: Sequence[Sequence[float]], weights: Sequence[float], k: int) -> float | None:
    """Between a weighted sum of the models and the k-th; None where one is 0."""
    used = [(i, weight) for i, weight in enumerate(weights) if weight]
    dot = math.fsum(weight * products[i][k] for i, weight in used)
    square = math.fsum(one * two * products[i][j] for i, one in used for j, two in used)
    lengths = math.sqrt(max(0.0, square)) * math.sqrt(products[k][k])
    return max(-1.0, min(1.0, dot / lengths)) if lengths else None


def _arc(cosine: float | None, share: float) -> tuple[float, float]:
    """Weights of the two ends; on the line where there is no arc."""
    angle = 0.0 if cosine is None else math.acos(cosine)
    if not PARALLEL < angle < math.pi - PARALLEL:
        return 1 - share, share
    return math.sin((1 - share) * angle) / math.sin(angle), math.sin(share * angle) / math.sin(angle)


def cosine(products: Sequence[Sequence[float]], i: int, j: int) -> float | None:
    """Of the angle between two of them; None where one is 0."""
    lengths = math.sqrt(products[i][i]) * math.sqrt(products[j][j])
    return max(-1.0, min(1.0, products[i][j] / lengths)) if lengths else None
