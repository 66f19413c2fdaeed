r"""The update of online merging: what an optimizer proposes, sparsified, meets the sparsified SFT delta.

Everything here is a function of tensors. `untaxed.optim.OnDAREAdamW` calls it on Adam's update, `Pipeline` on the
displacement of any other optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..checks import check_number
from ..consensus import Consensus, consensus
from ..counter import mask_key
from ..largest import Reduce
from ..sparsify import Rescale as Rescale
from ..sparsify import check_density, magnitude_mask, random_mask, rescaled

Sparsify = Literal["random", "magnitude", "momentum", "none"]
DeltaMask = Literal["fresh", "once"]
Pull = Literal["constant", "anchor", "unrelaxed"]

CHOICES = {
    "sparsify": get_args(Sparsify),
    "consensus": get_args(Consensus),
    "rescale": get_args(Rescale),
    "delta_mask": get_args(DeltaMask),
    "pull": get_args(Pull),
}


@dataclass(frozen=True)
class Merging:
    r"""How an update is merged; plain values, so that they stand in an optimizer's groups.

    Attributes:
        density: Share of the entries kept, in (0, 1].
        merge_weight: :math:`w` in [0, 1]; 0: no delta is needed and none is looked at.
        merge_every: :math:`K`, optimizer steps between merges.
        sparsify: "random" (DARE), "magnitude" (TIES), "momentum" (MoFO: the update where the base optimizer's first
            moment is largest; the delta by its own magnitude), "none".
        consensus: "sum", "sign" (weighted, the paper's) or "sign_unweighted" (the released code's).
        rescale: "none" (the paper), "inverse" (1/density, the released code's), "l1".
        delta_mask: The random mask of the delta: "fresh" every step (the paper) or drawn "once" (the released code).
        clamp: Bound of the rescaled delta's entries (released code: 1), or None.
        pull: What the second term is. "constant": the delta itself, a constant push past initial (the paper).
            "anchor": (initial + anchor_at · delta) − weights, a pull with a fixed point. "unrelaxed": the paper's
            Eq. 1, the whole displacement from pretrained merged anew at every step.
        anchor_at: :math:`c` of the anchor.
        push_every: The second term acts at every n-th merge with n times its weight.
        seed: Of the random masks.
    """

    density: float = 1.0
    merge_weight: float = 0.0
    merge_every: int = 1
    sparsify: Sparsify = "random"
    consensus: Consensus = "sum"
    rescale: Rescale = "none"
    delta_mask: DeltaMask = "fresh"
    clamp: float | None = None
    pull: Pull = "constant"
    anchor_at: float = 0.0
    push_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("density", "merge_weight", "anchor_at"):
            check_number(name, getattr(self, name))
        if self.clamp is not None:
            check_number("clamp", self.clamp)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed must be a whole number, got {self.seed!r}")
        check_density(self.density)
        if not 0 <= self.merge_weight <= 1:
            raise ValueError(f"merge_weight must be in [0, 1], got {self.merge_weight}")
        for name in ("merge_every", "push_every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.clamp is not None and not self.clamp > 0:
            raise ValueError(f"clamp must be above 0, got {self.clamp}")

    @property
    def needs_delta(self) -> bool:
        """True where the delta is looked at; an anchor at initial itself (``anchor_at`` 0) needs none."""
        if self.pull == "unrelaxed":
            return True
        return self.merge_weight > 0 and not (self.pull == "anchor" and self.anchor_at == 0)


@dataclass(frozen=True)
class Place:
    """Which part of which parameter a local tensor is.

    Attributes:
        name: The parameter's full name.
        offset: Place of the first local entry in the whole flat tensor.
        total: Entries of the whole tensor; None: the local tensor is whole.
        reduce: Sums counts over the processes that hold the other parts; None: the local tensor is whole.
    """

    name: str
    offset: int = 0
    total: int | None = None
    reduce: Reduce | None = None


def merged_update(
    update: Tensor,
    old: Tensor,
    merging: Merging,
    *,
    place: Place,
    step: int,
    delta: Tensor | None = None,
    momentum: Tensor | None = None,
    state: MutableMapping[str, Any],
    flush: bool = False,
) -> Tensor:
    r"""What the weights move by, where the base optimizer proposes ``update``.

    .. math:: (1-w)\,F(\Delta) \oplus w\,F(\tau)

    at every ``merge_every``-th step, with :math:`\Delta` all that was proposed since the last one; ``update`` between.

    Args:
        update: :math:`\Delta`, the local part, float32 or float64.
        old: The weights before it, the same shape and dtype.
        merging: The settings.
        place: What the local part is a part of.
        step: The parameter's own optimizer step, from 1.
        delta: :math:`\tau`, the local part; needed where `Merging.needs_delta`.
        momentum: The base optimizer's first moment, for "momentum".
        state: What is kept between the steps, the caller's to save: ``at_merge``, ``anchor``.
        flush: Merge now what was proposed since the last merge; ``update`` is then 0.
    Returns:
        A new tensor, the shape of ``update``. Inputs are not written to.

    Source: Lu et al. 2024, arXiv:2405.17931, Eq. 1 to 7, Algorithms 1 and 2.
    Differs: the weights at the last merge are kept in place of the accumulated change: the same memory, and rolling
        back is exact under weight decay. The released code rescales by 1/density, masks the delta once and elects
        signs without the weights; each is an option here, none the default.
    """
    if merging.merge_every == 1 and "at_merge" not in state:  # else it was set while a window was open: closed here
        return _merge(update, old, merging, place, step, delta, momentum, state)
    if not flush and step % merging.merge_every:
        state.setdefault("at_merge", old.clone())
        return update.clone()
    origin = state.pop("at_merge", old)
    whole = old + update - origin
    merged = _merge(whole, origin, merging, place, step, delta, momentum, state)
    return torch.where(merged == whole, update, origin + merged - old)  # unchanged entries stay so to the bit


def _merge(
    update: Tensor,
    origin: Tensor,
    merging: Merging,
    place: Place,
    step: int,
    delta: Tensor | None,
    momentum: Tensor | None,
    state: MutableMapping[str, Any],
) -> Tensor:
    """The merge of one displacement from ``origin``."""
    own, pull, back = update, delta, None
    if merging.pull != "constant" and not (delta is None and merging.anchor_at):
        if "anchor" not in state:  # at the first merge, where origin is initial, whatever the weight is then
            state["anchor"] = _anchor(origin, merging, delta)
        if merging.pull == "anchor":
            pull = state["anchor"] - origin
        else:
            own, back = origin - state["anchor"] + update, state["anchor"] - origin
    terms, weights = [_kept_update(own, merging, place, step, momentum)], [1 - merging.merge_weight]
    if weight := push_weight(merging, step):
        assert pull is not None
        terms.append(_kept_pull(pull, merging, place, step))
        weights.append(weight)
    merged = consensus(terms, weights, how=merging.consensus)
    return merged if back is None else back + merged


def _anchor(initial: Tensor, merging: Merging, delta: Tensor | None) -> Tensor:
    """Where the pull leads, or for Eq. 1 the pretrained weights: initial - delta."""
    factor = merging.anchor_at if merging.pull == "anchor" else -1.0
    if factor == 0:
        return initial.clone()
    assert delta is not None
    return initial + factor * delta


def push_weight(merging: Merging, step: int) -> float:
    """The weight of the second term at this step's merge: 0 where `push_every` lets it rest."""
    merges = -(-step // merging.merge_every)
    return 0.0 if merges % merging.push_every else merging.merge_weight * merging.push_every


def update_key(merging: Merging, place: Place, step: int) -> int:
    """Of the update's random mask."""
    return mask_key(merging.seed, place.name, step, "update")


def delta_key(merging: Merging, place: Place, step: int) -> int:
    """Of the delta's random mask."""
    return mask_key(merging.seed, place.name, 0 if merging.delta_mask == "once" else step, "delta")


def _kept_update(values: Tensor, merging: Merging, place: Place, step: int, momentum: Tensor | None) -> Tensor:
    if merging.sparsify == "momentum":
        if momentum is None:
            raise ValueError("sparsify 'momentum' needs an optimizer that keeps a first moment (Adam's, SGD's)")
        chosen = momentum
    else:
        chosen = values
    return _kept(values, chosen, merging, place, update_key(merging, place, step))


def _kept_pull(values: Tensor, merging: Merging, place: Place, step: int) -> Tensor:
    drawn_at = step if merging.sparsify == "random" else 0  # the largest stay the largest, and among equals the same
    kept = _kept(values, values, merging, place, delta_key(merging, place, drawn_at))
    return kept if merging.clamp is None else kept.clamp(-merging.clamp, merging.clamp)


def _kept(values: Tensor, chosen: Tensor, merging: Merging, place: Place, key: int) -> Tensor:
    """The entries of ``values`` where ``chosen`` is largest, or random ones, rescaled; all of them for "none"."""
    if merging.sparsify == "none":
        return values
    if merging.sparsify == "random":
        mask = random_mask(values.numel(), merging.density, key=key, offset=place.offset, device=values.device)
        mask = mask.view(values.shape)
    else:
        mask = magnitude_mask(
            chosen, merging.density, key=key, offset=place.offset, total=place.total, reduce=place.reduce
        )
    return rescaled(values, mask, merging.density, merging.rescale, place.reduce)


def merging_of(group: Mapping[str, Any]) -> Merging:
    """The settings that stand in an optimizer's group."""
    return Merging(**{name: group[name] for name in Merging.__dataclass_fields__ if name in group})
