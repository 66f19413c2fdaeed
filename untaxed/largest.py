"""The k largest magnitudes of a flat tensor, exactly, found block by block by counting: no sort, no copy of the tensor.

Every pass counts how many entries fall into each of 65,536 bins, and the next one looks into the bin in which the k-th
largest lies. One or two passes give its magnitude to the bit. Where more entries have it than there is room for, their
random bits choose among them, which takes one more pass, so that neither the order of the entries nor their
distribution over blocks and processes matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .counter import CHUNK, WORD, bits_at

Reduce = Callable[[Tensor], Tensor]  # sums an integer tensor over the processes that hold the other parts

BINS = 1 << 16
PART = 8 * CHUNK  # entries whose equals are looked up at once
SPREAD = 6.0  # standard deviations of where the choice among equals is expected


class Largest:
    """Which entries are kept when only the ``count`` largest by magnitude are.

    Give `take` every block of the tensor, in any order, then call `again`; where that says True, once more. Afterwards
    `keep_` and `mask` act on any block.

    Args:
        count: How many are kept: at least 1, at most as many as there are entries.
        key: From `mask_key`, for equal magnitudes.
        zeros: False: where the limit is 0 the choice among the zeros is not made, which only `mask` needs.
        reduce: Sums counts over the processes that hold other parts; every process must then call the same.
    Example:
        >>> values, largest = torch.tensor([3.0, -4.0, 1.0, 2.0]), Largest(2)
        >>> largest.find(values).mask(values)
        tensor([ True,  True, False, False])

    Magnitudes are compared in float32.
    """

    def __init__(self, count: int, *, key: int = 0, zeros: bool = True, reduce: Reduce | None = None) -> None:
        self._key, self._zeros, self._reduce = key, zeros, reduce
        self._device = torch.device("cpu")
        self._size = _Search(count, shift=16)
        self._choice: _Search | None = None  # among the entries of the limit's size, where not all are kept

    def take(self, values: Tensor, offset: int = 0) -> None:
        """Counts a flat block; ``offset`` is its place in the whole tensor. Blocks may come from several threads."""
        self._device = values.device
        for at, part in _parts(values, offset):
            if self._choice is not None:
                self._choice.count_in(bits_at(self._key, self._tied(part) + at))
                continue
            for run in part.split(CHUNK):
                self._size.count_in(_order(run))

    def again(self) -> bool:
        """Ends a pass; True when another one is needed."""
        if self._choice is not None:
            return not self._choice.narrow(self._reduce, self._device)
        if not self._size.narrow(self._reduce, self._device):
            return True
        search = self._size
        if search.missing == search.inside or (search.low == 0 and not self._zeros):
            return False
        share = 1 - search.missing / search.inside
        self._choice = _Search(search.missing, *_window(share, search.inside))
        return True

    def find(self, values: Tensor, offset: int = 0) -> Largest:
        """All passes over a tensor that is in memory."""
        while True:
            self.take(values, offset)
            if not self.again():
                return self

    def mask(self, values: Tensor, offset: int = 0) -> Tensor:
        """Which entries of a flat block are kept: bool."""
        mask = torch.empty(values.shape, dtype=torch.bool, device=values.device)
        for run, kept in zip(values.split(CHUNK), mask.split(CHUNK)):
            torch.ge(_order(run), self._size.low, out=kept)
        if self._choice is not None:
            for (at, part), kept in zip(_parts(values, offset), mask.split(PART)):
                tied, chosen = self._chosen(part, at)
                kept.index_copy_(0, tied, chosen)
        return mask

    def keep_(self, values: Tensor, offset: int = 0) -> Tensor:
        """Sets the entries of a flat block that are not kept to 0, in place."""
        if self._size.low == 0:
            return values  # among zeros there is nothing to choose
        if values.dtype != torch.float32:
            return values.masked_fill_(~self.mask(values, offset), 0)
        below = _magnitude(self._size.low - 1)
        for run in values.split(CHUNK):
            torch.hardshrink(run, below, out=run)
        if self._choice is not None:
            for at, part in _parts(values, offset):
                tied, chosen = self._chosen(part, at)
                part.index_copy_(0, tied, part[tied].mul_(chosen))
        return values

    def _tied(self, values: Tensor) -> Tensor:
        """Places of the entries of the limit's size."""
        found = [
            _places(_order(part), self._size.low) + start * CHUNK for start, part in enumerate(values.split(CHUNK))
        ]
        return torch.cat(found)

    def _chosen(self, values: Tensor, offset: int) -> tuple[Tensor, Tensor]:
        """Places of the entries of the limit's size, and whether each is kept."""
        assert self._choice is not None
        tied = self._tied(values)
        return tied, bits_at(self._key, tied + offset) >= self._choice.low


class _Search:
    """Finds the ``count``-th largest of integers from 0 to 2^32 by counting those in bins of ever smaller width."""

    def __init__(self, count: int, shift: int, low: int = 0) -> None:
        self.count, self.shift, self.low = count, shift, low
        self.missing = self.inside = 0  # entries wanted of the last bin looked at, and entries in it
        self.above: int | None = None  # how many lie above the bins, once it is known that the one looked for does not
        self._counts: Tensor | None = None
        self._lock = Lock()

    def count_in(self, keys: Tensor) -> None:
        """Adds the counts of a flat integer tensor, which it overwrites."""
        places = keys.sub_(self.low)
        if self.above is not None:
            places = _below(places, BINS << self.shift)
        # the first and last bin: all that lies outside
        places = places.bitwise_right_shift_(self.shift).clamp_(-1, BINS).add_(1)
        found = torch.bincount(places, minlength=BINS + 2)
        with self._lock:
            self._counts = found if self._counts is None else self._counts.add_(found)

    def narrow(self, reduce: Reduce | None, device: torch.device) -> bool:
        """Ends a pass: from the value `low` on the entries are kept. True when no other pass is needed."""
        if self._counts is None:  # nothing lies here, and the other processes wait for that
            self._counts = torch.zeros(BINS + 2, dtype=torch.int64, device=device)
        counts, self._counts = reduce(self._counts) if reduce else self._counts, None
        counts[BINS + 1] += self.above or 0
        from_above = counts.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_above, self.count))
        self.inside = int(counts[BINS + 1 - place])
        self.missing = self.count - int(from_above[place]) + self.inside
        at = BINS - place
        if not 0 <= at < BINS:  # not in the window
            self.low, self.shift = 0, 16
            return False
        self.low += at << self.shift
        if self.shift == 0 or self.missing == self.inside:
            return True
        self.shift, self.above = max(0, self.shift - 16), self.count - self.missing
        return False


def _window(share: float, size: int) -> tuple[int, int]:
    """The bins' width (a shift) and first value where the ``share``-quantile of ``size`` uniform integers is."""
    middle = share * (WORD + 1)
    half = SPREAD * math.sqrt(share * (1 - share) / size) * (WORD + 1) + 1
    shift = max(0, min(16, math.ceil(math.log2(2 * half / BINS))))
    return shift, max(0, min(int(middle) - (BINS << shift) // 2, WORD + 1 - (BINS << shift)))


def _parts(values: Tensor, offset: int) -> Iterator[tuple[int, Tensor]]:
    """A flat tensor part by part, each with its place: what is noted of equal entries stays small."""
    for start in range(0, values.numel(), PART):
        yield offset + start, values[start : start + PART]


def _places(order: Tensor, value: int) -> Tensor:
    """Where a flat integer tensor has a value. On a CPU numpy finds it in a seventh of torch's time."""
    if order.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(order.numpy() == value))
    return (order == value).nonzero().flatten()


def _below(values: Tensor, limit: int) -> Tensor:
    """The values of a flat integer tensor that are at least 0 and below a limit."""
    if values.device.type == "cpu":
        plain = values.numpy()
        unsigned: Any = plain.view(np.uint32 if plain.dtype == np.int32 else np.uint64)  # negative ones are large
        return torch.from_numpy(
            plain.take(np.flatnonzero(unsigned < limit))
        )  # a mask as index takes five times as long
    return values[(values >= 0) & (values < limit)]


def _order(values: Tensor) -> Tensor:
    """The bits of the magnitudes, which are in their order: int32, fresh."""
    return values.abs().to(torch.float32).view(torch.int32)


def _magnitude(order: int) -> float:
    return float(torch.tensor(order, dtype=torch.int32).view(torch.float32))
