"""Merged AdamW through the compiled kernel: float32 on a CPU, a list of parameters at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..sparsify import keep_below
from ._adam import coefficients
from ._item import Item
from ._kernel import CONSENSUS, EVERYTHING, ITEM, Kernel, Reference, Work, cut
from ._merge import Merging, delta_key, push_weight, update_key

WORD = (1 << 64) - 1


def keeps_all(merging: Merging) -> bool:
    """True where no entry is left out."""
    return merging.density == 1 or merging.sparsify == "none"


def fits(item: Item) -> bool:
    """True where the kernel computes what the eager form would."""
    merging = item.merging
    for tensor in (item.weights, item.gradient, *item.moments):
        if tensor.dtype != torch.float32 or not tensor.is_cpu or not tensor.is_contiguous():
            return False
    return (
        merging.pull == "constant"
        and merging.rescale != "l1"
        and (keeps_all(merging) or merging.sparsify == "random" or item.place.reduce is None)
        and item.weights.numel() < 1 << 31
    )


def step_random(kernel: Kernel, items: Sequence[Item], references: Sequence[Reference]) -> list[str]:
    """One step with masks drawn at random; the names of the parameters whose gradients are not finite."""
    pieces = cut(item.weights.numel() for item in items)
    kernel.run(Work.STEP_RANDOM, table_of(items, references), pieces)
    return broken(items, pieces)


def all_finite(kernel: Kernel | None, tensors: Sequence[Tensor]) -> list[bool]:
    """For each tensor whether all its entries are finite."""
    plain = [t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t in tensors]
    if kernel is None or not all(plain):
        return [bool(torch.isfinite(tensor).all()) for tensor in tensors]
    table, pieces = np.zeros(len(tensors), dtype=ITEM), cut(tensor.numel() for tensor in tensors)
    table["g"] = [tensor.data_ptr() for tensor in tensors]
    kernel.run(Work.IS_FINITE, table, pieces)
    bad = set(pieces["item"][pieces["faults"] > 0].tolist())
    return [number not in bad for number in range(len(tensors))]


def broken(items: Sequence[Item], pieces: np.ndarray) -> list[str]:
    """The names of the parameters in whose pieces the kernel met a gradient that is not finite."""
    return sorted({items[number].place.name for number in pieces["item"][pieces["faults"] > 0]})


def table_of(items: Sequence[Item], references: Sequence[Reference]) -> np.ndarray:
    """What the kernel reads of each tensor."""
    rows, rules = [], {}
    for item, reference in zip(items, references):
        kind = (id(item.group), item.step, reference.given)
        if kind not in rules:
            rules[kind] = rule_of(item, has_reference=kind[-1])
        fixed, below = rules[kind]
        own = update_key(item.merging, item.place, item.step) & WORD
        other = delta_key(item.merging, item.place, item.step) & WORD if reference.first is not None else 0
        weights, (first, second) = item.weights, item.moments
        pointers = weights.data_ptr(), item.gradient.data_ptr(), first.data_ptr(), second.data_ptr()
        rule = (*fixed, own, below, other, below)
        rows.append((*pointers, weights.numel(), item.place.offset, rule, reference.fields, 0, 0, 0, 0, 0))
    return np.array(rows, dtype=ITEM)


def rule_of(item: Item, *, has_reference: bool) -> tuple[tuple[float, ...], int]:
    """The settings of the item's group in the order of `RULE`, up to the keys; below which random bits are kept."""
    merging, group = item.merging, item.group
    beta1, beta2 = group["betas"]
    scale = 1 / merging.density if merging.rescale == "inverse" and merging.sparsify != "none" else 1.0
    fixed = (
        *(1 - beta1, beta2, 1 - beta2, *coefficients(group, item.step)),
        group["eps"] if group["lr"] else 1.0,  # else 0 / 0 where the eager form proposes nothing
        group["lr"] * group["weight_decay"],
        group["adam"] == "algorithm_box",
        push_weight(merging, item.step) if has_reference else 0.0,
        1 - merging.merge_weight,
        *(scale, scale, math.inf if merging.clamp is None else merging.clamp),
        CONSENSUS[merging.consensus],
    )
    return fixed, EVERYTHING if keeps_all(merging) else keep_below(merging.density)
