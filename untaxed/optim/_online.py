"""Online merging as a function of the update, for `Pipeline` around any optimizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ._delta import Delta, as_delta, check_delta, random_direction
from ._merge import Merging, merged_update
from ._sites import Entry

Direction = Literal["delta", "random"]


class MergeUpdate:
    r"""The update rule of online merging: :math:`(1-w)\,F(\Delta) \oplus w\,F(\tau)` in place of :math:`\Delta`.

    Of a delta in memory nothing is copied on the CPU, and a local part in float32 on an accelerator; one of another
    storage is read at every merge.

    Args:
        merging: The settings; they go into the optimizer's groups, where they may differ and change during training.
        delta: The SFT delta, as `as_delta` takes it; None where no group needs one.
        direction: "delta", or "random": in its place a random direction with each tensor's norm, the control for any
            claim that the direction matters. Its seed is that of ``merging``.
    Example:
        >>> from untaxed.optim import Pipeline
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> rule = MergeUpdate(Merging(merge_weight=0.5), {"w": torch.tensor([4.0, -4.0])})
        >>> optimizer = Pipeline(torch.optim.SGD([("w", weight)], lr=1.0), update=rule)
        >>> weight.grad = torch.ones(2)
        >>> optimizer.step(), weight.tolist()  # 0.5 · (-1, -1) + 0.5 · (4, -4)
        (None, [1.5, -2.5])
    """

    def __init__(
        self, merging: Merging, delta: Delta | Mapping[str, Any] | None = None, *, direction: Direction = "delta"
    ):
        if direction not in get_args(Direction):
            raise ValueError(f"direction must be one of {', '.join(get_args(Direction))}, got {direction!r}")
        self.defaults = dataclasses.asdict(merging)
        self.delta = None if delta is None else as_delta(delta)
        if self.delta is not None and direction == "random":
            self.delta = random_direction(self.delta, merging.seed)
        self._local: dict[str, Tensor] = {}
        self._fitting: dict[str, tuple[int, ...]] = {}

    def __call__(self, update: Tensor, old: Tensor, entry: Entry, state: MutableMapping[str, Any]) -> Tensor:
        return self._merged(update, old, entry, state, flush=False)

    def flush(self, old: Tensor, entry: Entry, state: MutableMapping[str, Any]) -> Tensor | None:
        """Merges what was proposed since the last merge; None when nothing was."""
        return self._merged(torch.zeros_like(old), old, entry, state, flush=True) if "at_merge" in state else None

    def restart(self, state: MutableMapping[str, Any]) -> None:
        """The weights were replaced: what was proposed since the last merge is gone, and the window begins there."""
        state.pop("at_merge", None)

    def check(self, entries: Sequence[Entry]) -> None:
        """Raises before the step where a setting is wrong, or the delta does not fit; each parameter's once."""
        merging = {entry.place.name: Merging(**entry.settings) for entry in entries}
        for entry in entries:
            if merging[entry.place.name].sparsify == "momentum":
                _check_momentum(entry)
        needed = {entry.place.name: entry.shape for entry in entries if merging[entry.place.name].needs_delta}
        if needed.items() <= self._fitting.items():
            return
        if self.delta is None:
            raise ValueError(
                f"merge_weight is above 0 for {next(iter(needed))!r} and no delta is given; pass "
                "delta=sft_delta(initial, pretrained), or set merge_weight to 0"
            )
        check_delta(self.delta, needed)
        for name, shape in needed.items():
            self.delta.norm(name)  # raises where an entry is not finite
            self._fitting[name] = shape

    def _merged(
        self, update: Tensor, old: Tensor, entry: Entry, state: MutableMapping[str, Any], *, flush: bool
    ) -> Tensor:
        merging = Merging(**entry.settings)
        wanted = merging.needs_delta or (merging.pull != "constant" and self.delta is not None)
        return merged_update(
            update,
            old,
            merging,
            place=entry.place,
            step=entry.step,
            delta=self._delta_at(entry, update) if wanted else None,
            momentum=entry.momentum,
            state=state,
            flush=flush,
        )

    def _delta_at(self, entry: Entry, like: Tensor) -> Tensor:
        """The local part of one parameter's delta, in the shape, dtype and place of ``like``."""
        assert self.delta is not None
        name, start = entry.place.name, entry.place.offset
        held = self._local.get(name)
        if held is not None and (held.shape, held.dtype, held.device) == (like.shape, like.dtype, like.device):
            return held
        values = self.delta.dense(name, start, start + like.numel()).view(like.shape).to(like.device, like.dtype)
        if self.delta.storage == "dense":
            self._local[name] = values
        return values


def check_direction(direction: str) -> None:
    """Raises `ValueError` for an unknown direction."""
    if direction not in get_args(Direction):
        raise ValueError(f"direction must be one of {', '.join(get_args(Direction))}, got {direction!r}")


def _check_momentum(entry: Entry) -> None:
    """Before the first step no optimizer has its moments yet: then its hyperparameters tell."""
    promised = entry.group.get("betas") or entry.group.get("momentum")
    if entry.momentum is None and (entry.step > 1 or not promised):
        raise ValueError(
            "sparsify 'momentum' needs an optimizer that keeps its first moment as exp_avg or momentum_buffer, such as "
            "AdamW, or SGD with momentum"
        )
