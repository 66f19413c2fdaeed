"""Sums over a whole tensor, gathered block by block, that depend neither on the blocks' size nor on their order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..counter import BLOCK


class Sums:
    """Several sums at once: over runs of 4,096 entries in float64, and over the runs exactly.

    Args:
        count: How many sums.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._runs: dict[int, Tensor] = {}  # place -> (count, runs)

    def add(self, offset: int, terms: Sequence[Tensor]) -> None:
        """Takes a flat float64 part of each; ``offset`` is its place, a multiple of 4,096."""
        self._runs[offset] = torch.stack([_in_runs(term) for term in terms]).cpu()

    def total(self) -> list[float]:
        """The sums."""
        if not self._runs:
            return [0.0] * self._count
        return [math.fsum(runs) for runs in torch.cat([self._runs[at] for at in sorted(self._runs)], dim=1).tolist()]


def _in_runs(values: Tensor) -> Tensor:
    whole = values.numel() // BLOCK * BLOCK
    sums = values[:whole].view(-1, BLOCK).sum(1)
    return sums if whole == values.numel() else torch.cat([sums, values[whole:].sum(0, keepdim=True)])
