r"""OnDARE and OnTIES as optimizers: AdamW whose update is sparsified and merged with the SFT delta at every step."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import _kernel
from ._fast import all_finite
from ._groups import check_adam, check_names, check_saved_names, named
from ._held import HeldDelta
from ._item import Item, advance, items_of, moments_of
from ._merge import Merging, merging_of
from ._place import any_true
from ._steps import Steps

log = logging.getLogger(__name__)

NONFINITE = ("raise", "skip")
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
        self._steps = Steps(self._held)
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
        items = items_of(self.param_groups, self.state)
        self._held.check_late(items)
        if self.nonfinite == "skip" and not self._finite(items):
            self.skipped += 1
            log.warning("step skipped: a gradient is not finite (%d so far)", self.skipped)
            return loss
        advance(items)
        if not self._looked and (warning := self._held.inert(items)):
            warnings.warn(warning, stacklevel=3)
        self._looked = True
        self._steps.take(items)
        return loss

    @torch.no_grad()
    def flush(self) -> None:
        """Merges what was proposed since the last merge, where `merge_every` does not divide the number of steps."""
        for item in items_of(self.param_groups, self.state, without_gradient=True):
            if "at_merge" in item.state:
                item.step, item.moments = int(item.state["step"]), moments_of(item)
                self._steps.close_window(item)

    @torch.no_grad()
    def restart(self, parameters: Iterable[Tensor]) -> None:
        """Somebody replaced these parameters' weights: their merging windows begin anew there, and so do masters."""
        for parameter in parameters:
            state = self.state.get(parameter, {})
            state.pop("at_merge", None)
            if "master" in state:
                state["master"].copy_(parameter.detach())

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
        self._steps = Steps(self._held)
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

    def _finite(self, items: Sequence[Item]) -> bool:
        fine = all_finite(_kernel.load(), [item.gradient for item in items])
        return not any(any_true([torch.tensor(not one) for one in fine], [item.place for item in items]))

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
