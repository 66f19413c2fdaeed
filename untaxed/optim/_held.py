"""The delta as an optimizer holds it: checked against the parameters, and in the form in which a step reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..sparsify import magnitude_mask, random_mask
from ..weights import local
from ._delta import Delta, as_delta, check_delta
from ._fast import keeps_all
from ._item import Item
from ._kernel import Reference
from ._merge import Merging, delta_key, push_weight
from ._sides import plain_name

LOOKED_AT = 4096  # entries of a parameter that say whether the push survives rounding


class HeldDelta:
    """A delta, or none, with the entries that are kept at every step where its mask is drawn once."""

    def __init__(self, given: Any) -> None:
        self.delta: Delta | None = None if given is None else as_delta(given)
        self._lists: dict[str, tuple[Any, Reference]] = {}
        self._views: dict[tuple[str, int, int], Reference] = {}
        self._fitting: set[str] = set()  # the parameters that the delta is known to fit

    def __deepcopy__(self, memo: Any) -> HeldDelta:
        """A copy holds the same delta, which nobody writes to."""
        copied = HeldDelta(None)
        copied.delta = self.delta
        return copied

    @property
    def fingerprint(self) -> str | None:
        return None if self.delta is None else self.delta.fingerprint

    def check(self, parameters: Mapping[str, Tensor], settings: Iterable[Merging]) -> None:
        """Raises `ValueError` where the delta that these parameters need is not there, or does not fit."""
        if not parameters:
            return
        if self.delta is None:
            raise ValueError("merge_weight is above 0 and no delta is given; pass delta=sft_delta(initial, pretrained)")
        fresh = any(one.sparsify == "random" and one.delta_mask == "fresh" and one.needs_delta for one in settings)
        if self.delta.storage == "sparse" and fresh:
            raise ValueError("storage 'sparse' holds the kept entries alone: it needs delta_mask='once'")
        trained = {name: tuple(p.shape) for name, p in parameters.items() if p.requires_grad}
        check_delta(self.delta, trained)
        self._fitting |= {plain_name(name) for name in trained}

    def check_late(self, items: Iterable[Item]) -> None:
        """`check` for parameters that need the delta since a weight was raised or they were unfrozen."""
        late = [item for item in items if item.merging.needs_delta and item.place.name not in self._fitting]
        if late:
            self.check({item.place.name: item.parameter for item in late}, [item.merging for item in late])

    def dense(self, item: Item, most: int | None = None) -> Tensor:
        """The local part of a parameter's delta, or its first entries: float32, one dimension, on the CPU."""
        assert self.delta is not None
        start, count = item.place.offset, item.weights.numel()
        return self.delta.dense(item.place.name, start, start + (count if most is None else min(count, most)))

    def reference(self, item: Item) -> Reference:
        """The delta as the kernel reads it at this step."""
        merging, place = item.merging, item.place
        if not push_weight(merging, item.step) or item.group["lr"] == 0:
            return Reference()
        assert self.delta is not None
        if keeps_all(merging) or (merging.sparsify == "random" and merging.delta_mask == "fresh"):
            return self._dense(item)
        drawn = (merging.sparsify, merging.density, merging.seed)
        held = self._lists.get(place.name)
        if held is None or held[0] != drawn:
            held = self._lists[place.name] = drawn, self._listed(item)
        return held[1]

    def forget(self) -> None:
        """Lets the kept entries go; they are drawn again when they are needed."""
        self._lists.clear()
        self._views.clear()

    def inert(self, items: Iterable[Item]) -> str | None:
        """Says where the push is below half a unit in the last place of the median weight."""
        for item in items:
            merging = item.merging
            if not merging.merge_weight or merging.pull != "constant" or item.group["rounding"] == "stochastic":
                continue
            weights = local(item.state.get("master", item.weights)).reshape(-1)[:LOOKED_AT]
            delta = self.dense(item, most=LOOKED_AT).abs()
            if not bool(delta.any()):
                continue
            scale = merging.push_every / (merging.density if merging.rescale == "inverse" else 1)
            push = float(merging.merge_weight * scale * delta[delta > 0].median())
            if push < half_ulp(weights.float().abs().median(), weights.dtype):
                return (
                    f"the push of {push:.1e} along the delta is below half a unit in the last place of the median "
                    f"weight of {item.place.name!r} ({weights.dtype}): where it meets no update it is lost in "
                    "rounding; gather it with push_every, or choose rounding='stochastic'"
                )
        return None

    def _dense(self, item: Item) -> Reference:
        """The local part; remembered where the delta always gives the same tensors, as making views takes its time."""
        assert self.delta is not None
        name, start, count = item.place.name, item.place.offset, item.weights.numel()
        known = self._views.get((name, start, count))
        if known is not None:
            return known
        first, second = self.delta.operands(name)
        view = Reference(first[start : start + count], None if second is None else second[start : start + count])
        if self.delta.lends(name):
            self._views[name, start, count] = view
        return view

    def _listed(self, item: Item) -> Reference:
        assert self.delta is not None
        merging, place = item.merging, item.place
        count, key = item.weights.numel(), delta_key(merging, place, 0)
        if merging.sparsify == "random":
            mask = random_mask(count, merging.density, key=key, offset=place.offset)
        else:
            mask = magnitude_mask(self.dense(item), merging.density, key=key, offset=place.offset)
        return Reference.of_kept(mask, self.delta.kept(place.name, mask, place.offset))


def half_ulp(size: Tensor, dtype: torch.dtype) -> float:
    """Half the distance between a number of this size and the next of its dtype; 0 at 0, where nothing is lost."""
    if size == 0:
        return 0.0
    _, exponent = torch.frexp(size)
    return 2.0 ** (int(exponent) - 1) * torch.finfo(dtype).eps / 2
