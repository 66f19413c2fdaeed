r"""OnDARE and OnTIES as optimizers: AdamW whose update is sparsified and merged with the SFT delta at every step."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from ..errors import RunFailed
from ..weights import local
from . import _kernel
from ._adam import proposed_update, update_moments
from ._fast import Item, all_finite, fits, keeps_all, step_random
from ._groups import check_adam, check_names, check_saved_names, named
from ._held import HeldDelta
from ._largest import Search
from ._merge import Merging, merged_update, merging_of
from ._place import any_true, as_placed, place_of
from ._rounding import added

log = logging.getLogger(__name__)

NONFINITE = ("raise", "skip")
PLAIN = Merging()
OWN = ("_held", "nonfinite", "skipped", "_looked", "_built")


class MergingAdamW(Optimizer):
    r"""AdamW with a merge in every step; use `OnDAREAdamW` or `OnTIESAdamW`, which differ in their defaults alone.

    .. math:: \theta \leftarrow \theta + (1-w)\,F(\Delta) \oplus w\,F(\tau)

    with :math:`\Delta` torch's AdamW update (bias correction, :math:`\epsilon` outside the root, weight decay within),
    :math:`\tau` the SFT delta initial − pretrained, :math:`F` sparsification and :math:`\oplus` consensus. The sum is
    added to the weights at once, so that a small push is not rounded away on its own.

    Every setting stands in the parameter groups: it is saved, may be scheduled, and may differ from group to group.
    Where nothing is to be merged (``density`` 1, ``merge_weight`` 0, ``merge_every`` 1) the step is torch's own AdamW,
    bit for bit. At a learning rate of 0 nothing is proposed, so nothing is merged or pushed.

    Args:
        params: ``model.named_parameters()``, or groups of named parameters; names key the masks and find the delta.
        lr, betas, eps, weight_decay: Of AdamW.
        delta: :math:`\tau`: from `sft_delta`, a mapping name -> tensor, or ``{"initial": PATH, "pretrained": PATH}``;
            needed where ``merge_weight`` is above 0. It is an input like the model, not a part of the state.
        names: In place of names in ``params``: one a parameter, in order (for callers that pass bare parameters).
        adam: "torch", or "algorithm_box": the paper's Algorithm 1, :math:`-\eta\,m/\sqrt{v+\epsilon}` uncorrected.
        master: "float32" keeps such a copy of narrower weights, which takes the updates.
        rounding: How a new weight is rounded to its dtype: "nearest", or "stochastic", which loses no update in
            expectation, however small.
        nonfinite: What a gradient that is not finite does: "raise" (which spoils the step: go back to a checkpoint), or
            "skip" the whole step (counted in `skipped`).
        density, merge_weight, merge_every, sparsify, consensus, rescale, delta_mask, clamp, pull, anchor_at,
        push_every, seed: See `untaxed.optim.Merging`.
    Raises:
        ValueError: A setting is out of range, a parameter has no name, or the delta does not fit (all that does not is
            listed).
        RunFailed: A gradient is not finite. Where it is so nothing was changed, but other parameters may have moved:
            go back to a checkpoint, or choose "skip".
    Example:
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = OnDAREAdamW(layer.named_parameters(), lr=0.1, density=0.5, merge_weight=0.1,
        ...                         delta={"weight": torch.ones(1, 2)})
        >>> _ = layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Cost: memory of AdamW, plus the delta as stored: 4 bytes a parameter dense (2 in bfloat16), 6 x density where the
    delta's mask is drawn once, none memory-mapped; ``merge_every`` above 1, an anchor or a master keep one more copy.

    Source: Lu et al. 2024, arXiv:2405.17931, Algorithms 1 and 2.
    Differs: see `untaxed.optim.merged_update`. A parameter without a gradient is not touched, so it is not pushed
        either. In float32 on a CPU the step runs compiled, where a C compiler is at hand; the eager form gives the same
        bits. Elsewhere it is eager.
    """

    DEFAULTS: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        delta: Any = None,
        names: Sequence[str] | None = None,
        adam: str = "torch",
        master: str | None = None,
        rounding: str = "nearest",
        nonfinite: str = "raise",
        **merging: Any,
    ) -> None:
        unknown = sorted(set(merging) - {field.name for field in fields(Merging)})
        if unknown:
            raise TypeError(f"{type(self).__name__} has no setting {unknown[0]!r}")
        if nonfinite not in NONFINITE:
            raise ValueError(f"nonfinite must be raise or skip, got {nonfinite!r}")
        self._held = HeldDelta(delta)
        self._search = Search()
        self.nonfinite = nonfinite
        self.skipped = 0
        self._looked = False
        own = {"adam": adam, "master": master, "rounding": rounding}
        base = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, **own}
        settings: dict[str, Any] = asdict(Merging()) | dict(self.DEFAULTS) | merging
        self._built = False
        super().__init__(named(params, names), base | settings)
        self._check_delta()
        self._built = True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of named parameters; its settings default to the constructor's."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_group(group)
            check_names(self.param_groups)
            if self._built:
                self._check_delta()
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One optimizer step.

        Args:
            closure: Evaluates the model again and returns the loss.
        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        items = self._items()
        self._held.check_late(items)
        if self.nonfinite == "skip" and not self._finite(items):
            self.skipped += 1
            log.warning("step skipped: a gradient is not finite (%d so far)", self.skipped)
            return loss
        for item in items:
            _advance(item)
        if not self._looked and (warning := self._held.inert(items)):
            warnings.warn(warning, stacklevel=3)
        self._looked = True
        plain, windows, fast, eager = self._sorted(items)
        self._step_plain(plain)
        self._step_windows(windows)
        self._step_fast(fast)
        for item in eager:
            self._step_eager(item)
        return loss

    @torch.no_grad()
    def flush(self) -> None:
        """Merges what was proposed since the last merge, where `merge_every` does not divide the number of steps."""
        for item in self._items(without_gradient=True):
            if "at_merge" in item.state:
                item.step = int(item.state["step"])
                self._close_window(item)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes during training; the delta's identity among it, its tensors not."""
        state = super().state_dict()
        state["delta"] = self._held.fingerprint
        state["skipped"] = self.skipped
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a saved state: what follows is bit-identical to no interruption.

        Raises:
            ValueError: The state was saved with another delta, or for other parameters.
        """
        ours = self._held.fingerprint
        saved = state_dict.get("delta", ours)
        if saved != ours:
            raise ValueError(f"the saved state belongs to the delta {saved}, this optimizer has {ours}")
        check_saved_names(state_dict["param_groups"], self.param_groups)
        super().load_state_dict(state_dict)
        self.skipped = state_dict.get("skipped", 0)
        self._keep_dtypes(state_dict)
        self._held.forget()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles; what is remembered for speed alone is left out."""
        return super().__getstate__() | {name: getattr(self, name) for name in OWN}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._search = Search()
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def _check_delta(self) -> None:
        """Of all groups at once: in one of them (the norms', say) the delta may well be zero."""
        self._held.check(
            {
                name: parameter
                for group in self.param_groups
                if merging_of(group).needs_delta
                for name, parameter in zip(group["param_names"], group["params"])
            },
            [merging_of(group) for group in self.param_groups],
        )

    # --- what a step is about ---------------------------------------------------------------------------------------

    def _items(self, *, without_gradient: bool = False) -> list[Item]:
        items = []
        for group in self.param_groups:
            merging = merging_of(group)
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                if parameter.grad is None and not without_gradient:
                    continue
                gradient = parameter.grad if parameter.grad is not None else parameter
                if gradient.is_sparse:
                    raise RuntimeError(f"the gradient of {name!r} is sparse, which merged AdamW does not take")
                place, weights = place_of(name, parameter), local(parameter.detach())
                state = self.state[parameter] if parameter.grad is not None else self.state.get(parameter, {})
                items.append(Item(parameter, place, weights, local(gradient.detach()), state, group, merging, 0))
        return items

    def _finite(self, items: Sequence[Item]) -> bool:
        fine = all_finite(_kernel.load(), [item.gradient for item in items])
        return not any(any_true([torch.tensor(not one) for one in fine], [item.place for item in items]))

    def _sorted(self, items: Sequence[Item]) -> tuple[list[Item], ...]:
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

    # --- ways of one step -------------------------------------------------------------------------------------------

    def _step_plain(self, items: Sequence[Item]) -> None:
        for item, fine in zip(items, all_finite(_kernel.load(), [item.gradient for item in items])):
            if not fine:
                raise _broken(item)
        for group, members in _by_group(items):
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
                self._close_window(item)

    def _close_window(self, item: Item) -> None:
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

    # --- state ------------------------------------------------------------------------------------------------------

    def _keep_dtypes(self, state_dict: Mapping[str, Any]) -> None:
        """torch casts a loaded state to its parameter's dtype, which would cut float32 moments to bfloat16."""
        numbers = (number for group in state_dict["param_groups"] for number in group["params"])
        parameters = (parameter for group in self.param_groups for parameter in group["params"])
        for number, parameter in zip(numbers, parameters):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor) and name != "step":
                    self.state[parameter][name] = value.to(parameter.device, copy=True)


class OnDAREAdamW(MergingAdamW):
    r"""AdamW with OnDARE: update and delta keep random entries, and are summed.

    The arguments, their defaults and what differs from the paper stand in `MergingAdamW`; ``density`` defaults to 0.05.

    Source: Lu et al. 2024, arXiv:2405.17931, Eq. 3 and 4, Algorithm 1.
    """

    DEFAULTS: ClassVar = {"sparsify": "random", "consensus": "sum", "density": 0.05}


class OnTIESAdamW(MergingAdamW):
    r"""AdamW with OnTIES: update and delta keep their largest entries; of two that differ in sign, the larger stands.

    The arguments, their defaults and what differs from the paper stand in `MergingAdamW`; ``density`` defaults to 0.05.
    ``consensus="sign_unweighted"`` elects as the released code does, which lets no weight move against the delta.

    Source: Lu et al. 2024, arXiv:2405.17931, Eq. 5 to 7, Algorithm 1.
    """

    DEFAULTS: ClassVar = {"sparsify": "magnitude", "consensus": "sign", "density": 0.05}


def _check_group(group: Mapping[str, Any]) -> None:
    if "param_names" not in group:
        raise ValueError(
            "merging needs the parameters' names: pass model.named_parameters(), groups of them, or names=[…]"
        )
    merging_of(group)
    check_adam(group)


def _advance(item: Item) -> None:
    """Makes or counts on the parameter's state: moments in float32 or better, sharded as the parameter is."""
    state = item.state
    if "step" not in state:
        state["step"] = torch.tensor(0.0)
        wide = torch.promote_types(item.weights.dtype, torch.float32)
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.zeros_like(item.parameter, dtype=wide, memory_format=torch.preserve_format)
        if item.group["master"] is not None and item.weights.dtype.itemsize < 4:
            state["master"] = item.parameter.detach().to(torch.float32, copy=True)
    state["step"] += 1
    item.step = int(state["step"])


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


def _by_group(items: Sequence[Item]) -> list[tuple[Mapping[str, Any], list[Item]]]:
    groups: dict[int, tuple[Mapping[str, Any], list[Item]]] = {}
    for item in items:
        groups.setdefault(id(item.group), (item.group, []))[1].append(item)
    return list(groups.values())


def _broken(item: Item) -> RunFailed:
    return RunFailed(
        f"the gradient of {item.place.name!r} is not finite at its step {item.step}; lower the learning rate, or "
        "choose nonfinite='skip'"
    )
