"""Elastic Reset's settings: at intervals the policy falls back to its average, and the average to the initial model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import nn

from ..checks import check_fraction, check_number
from ..errors import Unsupported
from ..method import Method
from ..sites import ALONE, Between, Context, Host, Site
from ._average import check_average, check_steps, decay_of
from ._guards import limits
from ._moments import RULES, MomentsRule
from ._settings import check_flag, check_patterns, settings_of

CHOICES = {
    "target": ("average", "initial"),
    "moments": RULES,
    "reference": ("initial", "average", "none"),
    "snapshot": ("copy", "reference"),
}


def kept_share(decay: float, updates: int) -> float:
    r"""The share of its displacement that a policy keeps at its first reset.

    A policy that drifts by the same step at every update, :math:`\theta_i = \theta_0 + i\,\delta`, falls back to its
    average after :math:`n` updates and keeps, of :math:`n\,\delta`,

    .. math:: 1 - \frac{\eta\,(1 - \eta^n)}{n\,(1 - \eta)}

    so that :math:`n (1 - \eta)` is what has to be tuned, not :math:`\eta` alone.

    Args:
        decay: :math:`\eta`, in [0, 1].
        updates: :math:`n`, updates of the average in one cycle, at least 1.
    Example:
        >>> round(kept_share(0.995, 17), 3)
        0.044

    Source: derived from the rule of Noukhovitch et al. 2023, arXiv:2312.07551.
    """
    check_fraction("decay", decay)
    check_steps("updates", updates)
    if decay == 1:
        return 0.0
    return 1 - decay * (1 - decay**updates) / (updates * (1 - decay))


@dataclass(frozen=True)
class ElasticReset(Method):
    """Resets the policy to its average and the average to the initial model, at intervals.

    Args:
        decay: Of the average, in [0, 1].
        reset_every: Optimizer steps between resets, a multiple of ``update_every``; None: by ``reset_when`` alone.
        update_every: Optimizer steps between updates of the average.
        half_life: In place of ``decay``, see `WeightAverage`.
        target: What the policy becomes: its "average", or "initial", for which no average is kept.
        reset_average: False: the average is never reset (the paper's control "reset to EMA").
        average_reset_every: Optimizer steps between resets of the average, a multiple of ``reset_every``: it falls back
            at the first reset from there on (a short first cycle counts as a whole one). None: at every reset.
        lengthen: Each cycle is so many times as long as the one before.
        skip_first: False: a first reset comes after the first update already, as in the authors' IMDB code.
        reset_when: Limits of the drift meter's measures at which the policy is reset, clock or no clock; written as a
            guard's: ``{"forward_kl": 0.3}``, ``{"entropy": {"below": 0.1}}``.
        moments: The optimizer's moments at a reset: "kept"; "cleared", which drops all that it keeps of a parameter; or
            "averaged" as the weights are, by an average that begins at 0 again where that of the weights does.
        exclude: Shell patterns of parameters that are neither averaged nor reset; a value head never is, unless this is
            None: then nothing is left out.
        reference: What the KL term holds the policy to: the "initial" model, the "average", or "none" (rloo, grpo).
        kl_target: Beta follows this KL (rloo, grpo), see `AdaptiveBeta`.
        device: "cpu" keeps average and initial weights in the host's memory; None: where the policy is.
        snapshot: "copy" keeps the initial weights apart; "reference" takes the trainer's own reference for them, one
            copy less, where it is the initial policy in float32.
    """

    name: ClassVar[str] = "elastic_reset"
    title: ClassVar[str] = "Elastic Reset"
    source: ClassVar[str] = "Noukhovitch et al. 2023, arXiv:2312.07551"
    summary: ClassVar[str] = "every n steps the policy falls back to its average, and the average to the initial model"
    acts: ClassVar[frozenset[Site]] = frozenset({"between"})
    resets: ClassVar[bool] = True

    decay: float | None = None
    reset_every: int | None = None
    update_every: int = 1
    half_life: float | None = None
    target: Literal["average", "initial"] = "average"
    reset_average: bool = True
    average_reset_every: int | None = None
    lengthen: float = 1.0
    skip_first: bool = True
    reset_when: dict[str, float | dict[str, float]] | None = field(default=None, hash=False)
    moments: MomentsRule = "kept"
    exclude: tuple[str, ...] | None = ()
    reference: Literal["initial", "average", "none"] = "initial"
    kl_target: float | None = None
    device: Literal["cpu"] | None = None
    snapshot: Literal["copy", "reference"] = "copy"

    def __post_init__(self) -> None:
        if self.target == "average":
            check_average(self.decay, self.half_life, self.update_every, device=self.device)
        else:
            check_steps("update_every", self.update_every)
        for name in ("reset_average", "skip_first"):
            check_flag(name, getattr(self, name))
        check_patterns("exclude", self.exclude)
        self._check_clock()
        self._check_choices()

    def settings(self) -> dict[str, Any]:
        """The first three always, the others where they are not at their defaults."""
        return settings_of(self, hidden=[field.name for field in dataclasses.fields(self)[3:]])

    def tell(self) -> str:
        """The share of a cycle's displacement that a steadily drifting policy keeps at its first reset."""
        if self.target == "initial":
            return "nothing of a cycle's displacement is kept at a reset"
        if self.reset_every is None:
            return "how long a cycle is the drift decides, and so what share of its displacement is kept"
        updates = self.reset_every // self.update_every
        decay = decay_of(self.decay, self.half_life, self.update_every)
        return (
            f"n = {updates} updates a cycle, decay {decay:.6g}: n (1 - decay) = {updates * (1 - decay):.3g}; under "
            f"steady drift {kept_share(decay, updates):.1%} of a cycle's displacement is kept at the first reset"
            f"{'' if self.skip_first else ' of a whole cycle'}, and "
            f"{decay**updates:.1%} of the average is the initial model"
        )

    def resets_average_after(self, steps: int) -> bool:
        """True when the average falls back, too, at a reset so many steps after it last did."""
        return self.reset_average and steps >= (self.average_reset_every or 0)

    @property
    def keeps_initial(self) -> bool:
        """True where something falls back to the initial weights, which are kept for that."""
        return self.target == "initial" or self.reset_average

    @property
    def writes_reference(self) -> bool:
        return self.reference == "average" or self.snapshot == "reference"

    def check(self, context: Context) -> None:
        last = context.max_steps
        setting = "reset_every" if self.skip_first else "update_every"  # where the first reset comes
        first = getattr(self, setting)
        by_clock = self.reset_every is not None and not self.reset_when
        if last is not None and by_clock and context.first_free(first) >= last:
            raise Unsupported(
                f"{self.name} would never reset: {setting} is {first}, training has {last} steps, and none comes at "
                f"the last one{context.held}; lower {setting}"
            )
        asked = "kl_target" if self.kl_target is not None else "reference" if self.reference == "none" else None
        if asked and context.algorithm not in (None, "rloo", "grpo"):
            raise Unsupported(f"{self.name}: {asked} changes the KL term of rloo and grpo; this is {context.algorithm}")

    def between(self, model: nn.Module, host: Host = ALONE) -> Between:
        from ._elastic_state import ElasticResetState  # which knows the settings

        return ElasticResetState(model, self, host=host)

    def _check_clock(self) -> None:
        every, unit = self.reset_every, self.update_every
        if self.reset_when is not None:
            limits(self.reset_when)
        if every is None and not self.reset_when:
            raise ValueError("reset_every is missing: give it, or reset_when")
        if every is not None:
            check_steps("reset_every", every)
            if every % unit:
                raise ValueError(f"reset_every must be a multiple of update_every, got {every} and {unit}")
        longer = self.average_reset_every
        if longer is not None:
            check_steps("average_reset_every", longer)
            if every is None or longer % every or self.lengthen != 1 or self.reset_when or not self.reset_average:
                raise ValueError("average_reset_every must be a multiple of reset_every, on a steady clock alone")
        check_number("lengthen", self.lengthen)
        if self.lengthen < 1:
            raise ValueError(f"lengthen must be at least 1, got {self.lengthen}")

    def _check_choices(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.target == "initial":
            given = [name for name in ("decay", "half_life", "average_reset_every") if getattr(self, name) is not None]
            if self.moments == "averaged" or self.reference == "average":
                given.append("moments" if self.moments == "averaged" else "reference")
            if given:
                raise ValueError(f"{given[0]} needs an average, and with target 'initial' none is kept")
        if self.snapshot == "reference" and self.reference != "initial":
            raise ValueError("snapshot 'reference' needs a reference that stays initial")
        if self.snapshot == "reference" and not self.keeps_initial:
            raise ValueError("snapshot 'reference' says where the initial weights are kept; none are (reset_average)")
        if self.kl_target is not None:
            check_number("kl_target", self.kl_target)
            if self.kl_target <= 0 or self.reference == "none":
                raise ValueError("kl_target must be above 0, and needs a KL term (reference must not be 'none')")
