"""Merged AdamW through the compiled kernel: float32 on a CPU, a list of parameters at once."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..sparsify import keep_below, kept_count
from ..weights import local
from ._adam import coefficients, proposed_update, update_moments
from ._kernel import CONSENSUS, EVERYTHING, Found, Kernel, Magnitude, Piece, Reference, Rule
from ._merge import Merging, Place, delta_key, push_weight, update_key

SAMPLE = 1 << 12  # entries looked at to guess between which magnitudes the threshold lies
SPREAD = 5.0  # standard deviations of the guess: outside once in a million steps, and then all are counted
TOP = 0x7FFFFFFF  # the order of no finite magnitude


@dataclass
class Item:
    """One parameter at one step: local tensors, its state and settings."""

    parameter: Tensor
    place: Place
    weights: Tensor
    gradient: Tensor
    state: MutableMapping[str, Any]
    group: MutableMapping[str, Any]
    merging: Merging
    step: int

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        return local(self.state["exp_avg"]), local(self.state["exp_avg_sq"])


def keeps_all(merging: Merging) -> bool:
    """True where no entry is left out."""
    return merging.density == 1 or merging.sparsify == "none"


def fits(item: Item) -> bool:
    """True where the kernel computes what the eager form would."""
    tensors = (item.weights, item.gradient, *item.moments)
    return (
        all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)
        and all(tensor.is_contiguous() for tensor in tensors)
        and item.merging.pull == "constant"
        and item.merging.rescale != "l1"
        and (keeps_all(item.merging) or item.merging.sparsify == "random" or item.place.reduce is None)
        and item.weights.numel() < 1 << 31
    )


def step_random(kernel: Kernel, items: Sequence[Item], references: Sequence[Reference]) -> list[str]:
    """One step with masks drawn at random; the names of the parameters whose gradients are not finite."""
    rules = [rule_of(item, bool(reference.first or reference.index)) for item, reference in zip(items, references)]

    def work(piece: Piece) -> int:
        number, start, end = piece
        item = items[number]
        return kernel.library.step_random(
            *_pointers(item.weights, item.gradient, *item.moments),
            *_longs(item.weights.numel(), start, end, item.place.offset),
            ctypes.byref(rules[number]),
            ctypes.byref(references[number]),
        )

    faults = kernel.over([item.weights.numel() for item in items], work)
    return sorted({items[piece[0]].place.name for piece, count in faults if count})


def step_magnitude(kernel: Kernel, items: Sequence[Item], references: Sequence[Reference]) -> list[str]:
    """One step with the largest updates (or momenta) kept; the names of the parameters whose gradients are not finite.

    The first pass updates the moments, finds what surely is kept and what may be; the threshold is found among the
    latter; the second pass moves the weights. Where the first finds a fault nothing is moved.
    """
    rules = [rule_of(item, bool(reference.index)) for item, reference in zip(items, references)]
    sizes = [item.weights.numel() for item in items]
    counts = [kept_count(size, item.merging.density) for item, size in zip(items, sizes)]
    brackets = [_bracket(item, count) for item, count in zip(items, counts)]
    finds = _find(kernel, items, rules, brackets, moments=True)
    if faults := sorted({items[number].place.name for (number, _), find in finds.items() if find.found.faults}):
        return faults
    chosen = []
    for number, item in enumerate(items):
        own = [find for (of, _), find in finds.items() if of == number]
        missing = counts[number] - sum(find.found.above_count for find in own)
        if not 1 <= missing <= sum(find.order.size for find in own):
            again = _find(kernel, [item], [rules[number]], [(0, TOP)], moments=False)
            finds.update({(number, start): find for (_, start), find in again.items()})
            own, missing = list(again.values()), counts[number]
        chosen.append(_threshold(kernel, item, rules[number], missing, own))

    def work(piece: Piece) -> int:
        number, start, end = piece
        item = items[number]
        kernel.library.step_found(
            *_pointers(item.weights, *item.moments),
            *_longs(sizes[number], start, end, item.place.offset),
            ctypes.byref(rules[number]),
            ctypes.byref(chosen[number]),
            ctypes.byref(finds[number, start].found),
            ctypes.byref(references[number]),
        )
        return 0

    kernel.over(sizes, work)
    return []


def all_finite(kernel: Kernel | None, tensors: Sequence[Tensor]) -> list[bool]:
    """For each tensor whether all its entries are finite."""
    plain = [t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t in tensors]
    if kernel is None or not all(plain):
        return [bool(torch.isfinite(tensor).all()) for tensor in tensors]
    library = kernel.library

    def work(piece: Piece) -> int:
        number, start, end = piece
        return library.is_finite(*_pointers(tensors[number]), *_longs(start, end))

    found = [True] * len(tensors)
    for piece, fine in kernel.over([tensor.numel() for tensor in tensors], work):
        found[piece[0]] &= bool(fine)
    return found


def rule_of(item: Item, has_reference: bool) -> Rule:
    """The item's settings as the kernel reads them."""
    merging, group = item.merging, item.group
    beta1, beta2 = group["betas"]
    step_size, root2 = coefficients(group, item.step)
    below = EVERYTHING if keeps_all(merging) else keep_below(merging.density)
    scale = 1 / merging.density if merging.rescale == "inverse" and merging.sparsify != "none" else 1.0
    return Rule(
        rest1=1 - beta1,
        beta2=beta2,
        rest2=1 - beta2,
        step_size=step_size,
        root2=root2,
        eps=group["eps"],
        decay=group["lr"] * group["weight_decay"],
        box=group["adam"] == "algorithm_box",
        weight=push_weight(merging, item.step) if has_reference else 0.0,
        update_weight=1 - merging.merge_weight,
        scale=scale,
        reference_scale=scale,
        clamp=math.inf if merging.clamp is None else merging.clamp,
        consensus=CONSENSUS[merging.consensus],
        key=update_key(merging, item.place, item.step) % (1 << 64),
        below=below,
        reference_key=delta_key(merging, item.place, item.step) % (1 << 64),
        reference_below=below,
    )


class Find(NamedTuple):
    """What the first pass found in one piece of a tensor.

    Attributes:
        found: The lists as the kernel reads them again, and their lengths.
        places: Where the entries between the two guesses stand in the local range.
        order: The bits of their magnitudes, which are in the order of these.
        kept: The memory behind all lists.
    """

    found: Found
    places: np.ndarray
    order: np.ndarray
    kept: np.ndarray


def _find(
    kernel: Kernel, items: Sequence[Item], rules: Sequence[Rule], brackets: Sequence[tuple[int, int]], *, moments: bool
) -> dict[tuple[int, int], Find]:
    """Takes the gradients into the moments, unless that is done, and lists what may be kept: by tensor and start."""
    finds: dict[tuple[int, int], Find] = {}

    def work(piece: Piece) -> int:
        number, start, end = piece
        item, (low, high) = items[number], brackets[number]
        memory = _scratch(3, end - start)
        found = Found(*(row.ctypes.data for row in memory))
        weights, first, second = _pointers(item.weights, *item.moments)
        kernel.library.moments_and_found(
            weights,
            ctypes.c_void_p(item.gradient.data_ptr() if moments else None),
            first,
            second,
            *_longs(start, end, item.place.offset),
            ctypes.byref(rules[number]),
            ctypes.c_int32(item.merging.sparsify == "momentum"),
            ctypes.c_uint32(low),
            ctypes.c_uint32(high),
            ctypes.byref(found),
        )
        _, places, order = memory[:, : found.between_count]
        finds[number, start] = Find(found, places, order, memory)
        return 0

    kernel.over([item.weights.numel() for item in items], work)
    return finds


def _scratch(rows: int, entries: int) -> np.ndarray:
    """Integers that cost memory only where they are written, and none once they are let go (malloc would keep it)."""
    return np.frombuffer(mmap.mmap(-1, 4 * rows * entries), dtype=np.uint32).reshape(rows, entries)


def _threshold(kernel: Kernel, item: Item, rule: Rule, count: int, finds: Sequence[Find]) -> Magnitude:
    """The ``count``-th largest of the entries between, and the random bits from which its equals are kept."""
    order = np.concatenate([find.order for find in finds])
    limit = _largest(order, count)
    missing = count - int((order > limit).sum())
    ties = np.concatenate([find.places[find.order == limit] for find in finds])
    if missing == ties.size or (limit == 0 and item.merging.sparsify != "momentum"):  # 0 may be kept or not
        return Magnitude(limit=limit, choice=0)
    bits = np.empty_like(ties)
    kernel.library.bits_at(
        ctypes.c_void_p(ties.ctypes.data),
        *_longs(ties.size, item.place.offset),
        ctypes.c_uint64(rule.key),
        ctypes.c_void_p(bits.ctypes.data),
    )
    return Magnitude(limit=limit, choice=_largest(bits, missing))


def _largest(values: np.ndarray, count: int) -> int:
    place = values.size - count
    return int(np.partition(values, place)[place])


def _bracket(item: Item, count: int) -> tuple[int, int]:
    """Two orders between which that of the ``count``-th magnitude lies, guessed from a sample of the entries."""
    size = item.weights.numel()
    if size <= 8 * SAMPLE:
        return 0, TOP
    places = slice(0, size, size // SAMPLE)
    first, second = (moment.view(-1)[places].clone() for moment in item.moments)
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


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def _longs(*numbers: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(number) for number in numbers]
