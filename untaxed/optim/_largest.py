"""The compiled step that keeps the largest updates (or momenta): exact, in two passes, without sorting."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Sequence

import numpy as np
import torch

from ..freed import give_back
from ..sparsify import kept_count
from ._adam import proposed_update, update_moments
from ._fast import broken, table_of
from ._item import Item
from ._kernel import Kernel, Reference, Work, cut

SAMPLES = 1 << 12, 1 << 16  # entries looked at, at least and at most, to guess where the threshold lies
SPREAD = 5.0  # standard deviations of that guess
WIDEST = 0.08  # relative change of a threshold from which the sample guesses better than the step before
MANY = 1 / 16  # share of the entries; where more are listed malloc keeps much of what that took
TOP = 0x7FFFFFFF  # the order of no finite magnitude

Bracket = tuple[int, int]


class Search:
    """Finds thresholds by magnitude, step after step.

    What it remembers, each parameter's last threshold and how much it changed, makes the search quick and no result
    different: a guess that does not hold is widened.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, float]] = {}

    def step(self, kernel: Kernel, items: Sequence[Item], references: Sequence[Reference]) -> list[str]:
        """One step; the names of the parameters whose gradients are not finite, and then nothing is moved.

        The first pass updates the moments, counts what surely is kept and lists what may be; the threshold is found
        among the latter; the second pass moves the weights.
        """
        table, pieces = table_of(items, references), cut(item.weights.numel() for item in items)
        table["momentum"] = [item.merging.sparsify == "momentum" for item in items]
        counts = [kept_count(item.weights.numel(), item.merging.density) for item in items]
        for row, item, count in zip(table, items, counts):
            if item.group["lr"] == 0:
                row["low"], row["high"] = TOP, TOP  # nothing moves: nothing to find
            else:
                row["low"], row["high"] = self._guess(item) or sampled(item, count, moved=False)
        scratch = _Scratch(pieces)
        kernel.run(Work.FIND, table, pieces)
        if faults := broken(items, pieces):
            return faults
        table["g"] = 0  # they are in the moments
        edges = np.searchsorted(pieces["item"], np.arange(len(items) + 1))
        for number, (item, count) in enumerate(zip(items, counts)):
            if item.group["lr"] == 0:
                continue
            row, own = table[number : number + 1], pieces[edges[number] : edges[number + 1]]
            missing = _found(kernel, table, number, own, item, count)
            row["limit"], row["choice"] = _threshold(kernel, row[0], missing, scratch, own)
            self._remember(item, int(row["limit"][0]))
        kernel.run(Work.STEP_LARGE, table, pieces)
        if pieces["between"].sum() > MANY * (pieces["to"] - pieces["from"]).sum():
            give_back()
        return []

    def _guess(self, item: Item) -> Bracket | None:
        """The last threshold give or take twice what it changed lately, where that is little."""
        last, change = self._last.get(item.place.name, (0.0, math.inf))
        width, expected = 2 * change + 1e-3, last * _unit(item)
        if width > WIDEST or not 0 < expected < math.inf:
            return None
        return order_of(expected * (1 - width)), order_of(expected * (1 + width))

    def _remember(self, item: Item, limit: int) -> None:
        unit, size = _unit(item), magnitude_of(limit)
        now = size / unit if unit else 0.0
        last, change = self._last.get(item.place.name, (0.0, math.inf))
        moved = abs(now / last - 1) if last else WIDEST / 8
        self._last[item.place.name] = now, max(moved, change / 2 if math.isfinite(change) else 0.0)


class _Scratch:
    """Room for what a first pass lists; the pieces are told where.

    It costs memory only where it is written, and none once it is let go (malloc would keep it).
    """

    def __init__(self, pieces: np.ndarray) -> None:
        lengths = pieces["to"] - pieces["from"]
        ends = 2 * np.cumsum(lengths)
        self._words = np.frombuffer(
            mmap.mmap(-1, 4 * int(ends[-1]), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=np.uint32
        )
        for row, name in enumerate(("place", "order")):
            pieces[name] = self._words.ctypes.data + 4 * (ends - (2 - row) * lengths)

    def listed(self, pieces: np.ndarray, what: str) -> np.ndarray:
        starts = (pieces[what] - self._words.ctypes.data) // 4
        parts = [self._words[a : a + n] for a, n in zip(starts.astype(np.int64), pieces["between"])]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _found(kernel: Kernel, table: np.ndarray, number: int, own: np.ndarray, item: Item, count: int) -> int:
    """How many of the listed entries are kept; where the guess does not hold they are listed again with wider ones."""
    for wider in (lambda: sampled(item, count, moved=True), lambda: (0, TOP)):
        missing = count - int(own["above"].sum())
        if 1 <= missing <= own["between"].sum():
            return missing
        table[number]["low"], table[number]["high"] = wider()
        kernel.run(Work.FIND, table, own)
    return count


def _threshold(kernel: Kernel, row: np.void, count: int, scratch: _Scratch, pieces: np.ndarray) -> tuple[int, int]:
    """The ``count``-th largest of the entries between, and the random bits from which its equals are kept."""
    order = scratch.listed(pieces, "order")
    limit = _largest(order, count)
    missing, equal = count - int((order > limit).sum()), order == limit
    if missing == equal.sum() or (limit == 0 and not row["momentum"]):  # an update of 0 may be kept or not
        return limit, 0
    ties = scratch.listed(pieces, "place")[equal]
    bits = np.empty_like(ties)
    kernel.library.bits_at(
        ctypes.c_void_p(ties.ctypes.data),
        ctypes.c_int64(ties.size),
        ctypes.c_int64(int(row["start"])),
        ctypes.c_uint64(int(row["rule"]["key"])),
        ctypes.c_void_p(bits.ctypes.data),
    )
    return limit, _largest(bits, missing)


def _largest(values: np.ndarray, count: int) -> int:
    place = values.size - count
    return int(np.partition(values, place)[place])


def sampled(item: Item, count: int, *, moved: bool) -> Bracket:
    """Two orders between which that of the ``count``-th magnitude lies, guessed from a sample of the entries.

    Args:
        item: The parameter.
        count: How many are kept.
        moved: The moments have the gradient already.
    """
    size = item.weights.numel()
    if size <= 8 * SAMPLES[0]:
        return 0, TOP
    places = slice(0, size, size // min(max(SAMPLES[0], size >> 11), SAMPLES[1]))
    first, second = (moment.view(-1)[places].clone() for moment in item.moments)
    if not moved:
        update_moments(item.gradient.view(-1)[places], first, second, item.group)
    values = first
    if item.merging.sparsify == "magnitude":
        values = proposed_update(item.weights.view(-1)[places], first, second, item.group, item.step)
    order = values.abs().view(torch.int32)
    share, n = count / size, order.numel()
    spread = SPREAD * math.sqrt(n * share * (1 - share)) + SPREAD
    lower, upper = math.ceil(n * share + spread), math.floor(n * share - spread)
    ordered = np.sort(order.numpy())
    return 0 if lower > n else int(ordered[n - lower]), TOP if upper < 1 else int(ordered[n - upper])


def order_of(size: float) -> int:
    """The bits of a magnitude in float32, which are in the order of magnitudes."""
    return int(np.float32(size).view(np.uint32))


def magnitude_of(order: int) -> float:
    """The magnitude with these bits."""
    return float(np.uint32(order).view(np.float32))


def _unit(item: Item) -> float:
    """What thresholds are proportional to: the learning rate, unless momenta are compared."""
    return 1.0 if item.merging.sparsify == "momentum" else float(item.group["lr"])
