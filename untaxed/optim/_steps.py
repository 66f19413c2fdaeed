"""The ways of one step of merged AdamW: torch's own, steps between merges, the compiled kernel, or eager."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ..errors import RunFailed
from ..weights import local
from . import _kernel
from ._adam import proposed_update, update_moments
from ._fast import all_finite, fits, keeps_all, step_random
from ._held import HeldDelta
from ._item import Item, by_group
from ._largest import Search
from ._merge import Merging, merged_update
from ._place import as_placed
from ._rounding import added

PLAIN = Merging()


class Steps:
    """Takes items, each in the fastest way that computes what its settings say.

    Args:
        held: The delta.
    """

    def __init__(self, held: HeldDelta) -> None:
        self._held = held
        self._search = Search()

    def take(self, items: Sequence[Item]) -> None:
        """One step of items whose moments are made and whose steps are counted.

        Raises:
            RunFailed: A gradient is not finite.
        """
        plain, windows, fast, eager = _sorted(items)
        _step_plain(plain)
        self._step_windows(windows)
        self._step_fast(fast)
        for item in eager:
            self._step_eager(item)

    def _step_windows(self, items: Sequence[Item]) -> None:
        """Steps of the same arithmetic without a merge, and at every K-th the merge of what they added up to.

        Not torch's fused step: where its vectors end it rounds otherwise, so that shards would differ from the whole.
        """
        for item in items:
            if "at_merge" not in item.state:
                item.state["at_merge"] = as_placed(item.weights.clone(), item.parameter)
        unmerged = [replace(item, merging=PLAIN) for item in items]
        compiled = _kernel.load() is not None
        self._step_fast([item for item in unmerged if compiled and fits(item)])
        for item in unmerged:
            if not (compiled and fits(item)):
                self._step_eager(item)
        for item in items:
            if item.step % item.merging.merge_every == 0 and item.group["lr"] != 0:
                self.close_window(item)

    def close_window(self, item: Item) -> None:
        weights = _wide(item)
        _write(item, weights, self._merged(item, torch.zeros_like(weights), weights, flush=True))

    def _step_fast(self, items: Sequence[Item]) -> None:
        kernel = _kernel.load()
        for step, at_random in ((step_random, True), (self._search.step, False)):
            chosen = [
                item for item in items if (keeps_all(item.merging) or item.merging.sparsify == "random") == at_random
            ]
            if chosen:
                assert kernel is not None
                if broken := step(kernel, chosen, [self._held.reference(item) for item in chosen]):
                    raise _broken(next(item for item in chosen if item.place.name == broken[0]))

    def _step_eager(self, item: Item) -> None:
        if not bool(torch.isfinite(item.gradient).all()):
            raise _broken(item)
        weights = _wide(item)
        update_moments(item.gradient.to(weights.dtype), *item.moments, item.group)
        if item.group["lr"] == 0:
            return
        update = proposed_update(weights, *item.moments, item.group, item.step)
        _write(item, weights, self._merged(item, update, weights))

    def _merged(self, item: Item, update: Tensor, weights: Tensor, *, flush: bool = False) -> Tensor:
        delta = None
        if item.merging.needs_delta:
            delta = self._held.dense(item).to(weights.device, weights.dtype).view(weights.shape)
        names = () if item.merging is PLAIN else ("at_merge", "anchor")  # a step within a window merges nothing
        kept = {name: local(item.state[name]) for name in names if name in item.state}
        before = dict(kept)
        move = merged_update(
            update,
            weights,
            item.merging,
            place=item.place,
            step=item.step,
            delta=delta,
            momentum=item.moments[0],
            state=kept,
            flush=flush,
        )
        for name in before.keys() - kept.keys():
            del item.state[name]
        item.state.update({name: as_placed(kept[name], item.parameter) for name in kept.keys() - before.keys()})
        return move


def _sorted(items: Sequence[Item]) -> tuple[list[Item], ...]:
    """Items whose step is torch's own; those that it is between merges; those for the kernel; the others."""
    plain: list[Item] = []
    windows: list[Item] = []
    fast: list[Item] = []
    eager: list[Item] = []
    for item in items:
        ordinary = item.group["rounding"] == "nearest" and item.state["exp_avg"].dtype == item.weights.dtype
        torchs = ordinary and item.group["adam"] == "torch"
        if not item.weights.numel() and item.place.reduce is None:
            continue  # empty, and no other process counts on ours
        if torchs and (item.merging.merge_every > 1 or "at_merge" in item.state):
            windows.append(item)
        elif torchs and not item.merging.needs_delta and keeps_all(item.merging):
            plain.append(item)
        elif ordinary and item.merging.merge_every == 1 and fits(item) and _kernel.load() is not None:
            fast.append(item)
        else:
            eager.append(item)
    return plain, windows, fast, eager


def _step_plain(items: Sequence[Item]) -> None:
    if not items:
        return
    for item, fine in zip(items, all_finite(_kernel.load(), [item.gradient for item in items])):
        if not fine:
            raise _broken(item)
    for group, members in by_group(items):
        beta1, beta2 = group["betas"]
        adamw(
            [item.weights for item in members],
            [item.gradient for item in members],
            [item.moments[0] for item in members],
            [item.moments[1] for item in members],
            [],
            [item.state["step"] - 1 for item in members],  # it counts on itself
            fused=all(_narrow_on_cpu(item.weights) for item in members) or None,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _narrow_on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _wide(item: Item) -> Tensor:
    """The weights in the precision in which updates are computed."""
    weights = local(item.state.get("master", item.weights))
    return weights.to(torch.promote_types(weights.dtype, torch.float32))


def _write(item: Item, weights: Tensor, move: Tensor) -> None:
    """Writes weights + move as the group's rounding says, through the master where one is kept."""
    target = local(item.state.get("master", item.weights))
    if item.group["rounding"] == "nearest":
        target.copy_(weights + move)
    else:
        name, seed = f"{item.place.name}\0update", item.merging.seed
        target.copy_(added(target, move, "stochastic", seed=seed, name=name, step=item.step, offset=item.place.offset))
    if "master" in item.state:
        item.weights.copy_(target)


def _broken(item: Item) -> RunFailed:
    return RunFailed(
        f"the gradient of {item.place.name!r} is not finite at its step {item.step}; lower the learning rate, or "
        "choose nonfinite='skip'"
    )
