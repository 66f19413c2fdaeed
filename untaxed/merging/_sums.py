"""Sums over a whole tensor, gathered block by block, that depend neither on the blocks' size nor on their order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..counter import BLOCK


class Sums:
    """Several sums at once: over runs of 4,096 entries in float64, and over the runs exactly.

    Args:
        count: How many sums.
        total: Entries of the whole tensor.
    """

    def __init__(self, count: int, total: int) -> None:
        # made once: small pieces that stay, between large ones that go, would keep malloc from giving these back
        self._runs = np.zeros((count, -(-total // BLOCK)))

    def add(self, offset: int, terms: Sequence[Tensor]) -> None:
        """Takes a flat float64 part of each; ``offset`` is its place, a multiple of 4,096."""
        place = offset // BLOCK
        for row, term in zip(self._runs, terms, strict=True):
            sums = _in_runs(term).cpu().numpy()
            row[place : place + sums.size] = sums

    def total(self) -> list[float]:
        """The sums."""
        return [math.fsum(runs) for runs in self._runs.tolist()]


def _in_runs(values: Tensor) -> Tensor:
    whole = values.numel() // BLOCK * BLOCK
    sums = values[:whole].view(-1, BLOCK).sum(1)
    return sums if whole == values.numel() else torch.cat([sums, values[whole:].sum(0, keepdim=True)])
