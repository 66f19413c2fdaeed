"""Merged AdamW through the compiled kernel: float32 on a CPU, a list of parameters at once."""

from __future__ import annotations

import ctypes
import math
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..sparsify import keep_below, kept_count
from ..weights import local
from ._adam import coefficients, proposed_update, update_moments
from ._kernel import CONSENSUS, EVERYTHING, Kernel, Magnitude, Piece, Reference, Rule
from ._merge import Merging, Place, delta_key, push_weight, update_key

SAMPLE = 1 << 15  # entries looked at to guess between which magnitudes the threshold lies
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


def step_magnitude(kernel: Kernel, item: Item, reference: Reference) -> bool:
    """One step of one parameter whose largest updates (or momenta) are kept; False where its gradient is not finite.

    The first pass updates the moments, counts what surely is kept and collects what may be; the threshold is found
    among those; the second pass moves the weights.
    """
    rule = rule_of(item, bool(reference.index))
    count = kept_count(item.weights.numel(), item.merging.density)
    low, high = _bracket(item, count)
    found = _candidates(kernel, item, rule, low, high, item.gradient)
    if found.faults:
        return False
    if not 1 <= count - found.above <= found.order.size:
        found = _candidates(kernel, item, rule, 0, TOP, None)
    chosen = _threshold(kernel, item, rule, count - found.above, found)

    def work(piece: Piece) -> int:
        _, start, end = piece
        kernel.library.step_magnitude(
            *_pointers(item.weights, *item.moments),
            *_longs(item.weights.numel(), start, end, item.place.offset),
            ctypes.byref(rule),
            ctypes.byref(chosen),
            ctypes.byref(reference),
        )
        return 0

    kernel.over([item.weights.numel()], work)
    return True


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


class Candidates(NamedTuple):
    """Entries among which the threshold lies.

    Attributes:
        above: How many entries are larger than all of them.
        order: The bits of their magnitudes, which are in the order of these.
        places: Where they stand in the local range.
        faults: Spans whose gradient is not finite.
    """

    above: int
    order: np.ndarray
    places: np.ndarray
    faults: int


def _candidates(kernel: Kernel, item: Item, rule: Rule, low: int, high: int, gradient: Tensor | None) -> Candidates:
    """Takes the gradient, if any, into the moments, and finds the entries from ``low`` to ``high``."""
    buffers: dict[int, tuple[np.ndarray, ctypes.Array]] = {}

    def work(piece: Piece) -> int:
        _, start, end = piece
        found, counts = np.empty((2, end - start), dtype=np.uint32), (ctypes.c_int64 * 2)()
        buffers[start] = found, counts
        weights, first, second = _pointers(item.weights, *item.moments)
        return kernel.library.moments_and_candidates(
            weights,
            None if gradient is None else ctypes.c_void_p(gradient.data_ptr()),
            first,
            second,
            *_longs(start, end, item.place.offset),
            ctypes.byref(rule),
            ctypes.c_int32(item.merging.sparsify == "momentum"),
            ctypes.c_uint32(low),
            ctypes.c_uint32(high),
            ctypes.c_void_p(found[0].ctypes.data),
            ctypes.c_void_p(found[1].ctypes.data),
            counts,
        )

    results = kernel.over([item.weights.numel()], work)
    order, places = np.concatenate([buffers[piece[1]][0][:, :written] for piece, written in results], axis=1)
    counts = [buffers[piece[1]][1] for piece, _ in results]
    return Candidates(sum(c[0] for c in counts), order, places, sum(c[1] for c in counts))


def _threshold(kernel: Kernel, item: Item, rule: Rule, count: int, found: Candidates) -> Magnitude:
    """The ``count``-th largest candidate; where several are equal to it, the random bits from which they are kept."""
    limit = _largest(found.order, count)
    missing = count - int((found.order > limit).sum())
    ties = found.places[found.order == limit]
    momentum = item.merging.sparsify == "momentum"
    if missing == ties.size or (limit == 0 and not momentum):  # an update of 0 may be kept or not
        return Magnitude(limit=limit, choice=0, momentum=momentum)
    bits = np.empty_like(ties)
    kernel.library.bits_at(
        ctypes.c_void_p(ties.ctypes.data),
        *_longs(ties.size, item.place.offset),
        ctypes.c_uint64(rule.key),
        ctypes.c_void_p(bits.ctypes.data),
    )
    return Magnitude(limit=limit, choice=_largest(bits, missing), momentum=momentum)


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
    low = 0 if lower > n else int(order.kthvalue(n - lower + 1).values)
    high = TOP if upper < 1 else int(order.kthvalue(n - upper + 1).values)
    return low, high


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def _longs(*numbers: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(number) for number in numbers]
