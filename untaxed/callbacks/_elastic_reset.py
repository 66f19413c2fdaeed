"""Elastic Reset: at intervals the policy falls back to its own average, and the average to the initial model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..errors import Unsupported
from ..method import ALONE, Between, Context, Host, Method, Site, check_fraction
from ..weights import check_same, same
from ._adaptive import AdaptiveBeta
from ._average import WeightAverage, check_average, check_steps, decay_of
from ._cycle import Cycle
from ._followed import followed, overwrite, restart, snapshot_of
from ._guards import limits
from ._moments import RULES, Moments, MomentsRule
from ._state import COUNT, TENSORS, check_state

STATE = {
    "average": TENSORS,
    "initial": TENSORS,
    "moments": TENSORS,
    "steps_since_reset": COUNT,
    "resets": COUNT,
    "read_at": COUNT,
    "asked": COUNT,
}
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


class ElasticResetState:
    r"""Elastic Reset for a plain PyTorch loop: call `step()` after every `optimizer.step()`.

    .. math::
        \bar\theta &\leftarrow \eta\,\bar\theta + (1 - \eta)\,\theta \\
        \theta &\leftarrow \bar\theta,\quad \text{then } \bar\theta \leftarrow \theta_0

    The first line every ``update_every`` steps, the second every ``reset_every`` steps, in this order.

    Schedules, reward models and frozen parameters are left alone, the optimizer's state too unless ``moments`` says
    otherwise, and parameters are written in place. Cost: two float32 copies of the trainable parameters (for LoRA: of
    the adapters); one with ``target="initial"``, or where the KL term's reference serves as the snapshot.

    Args:
        model: The policy at its initial weights; build this after sharding or moving it.
        rule: The settings; or give them by name, see `ElasticReset`.
        host: The training around the policy, where the settings need it: the optimizer, the reference, the drift meter.
            An optimizer that merges every few steps, or keeps float32 masters, always: else it undoes the resets.
    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> reset = ElasticResetState(model, decay=0.5, reset_every=1)
        >>> _ = nn.init.ones_(model.weight)  # stands for optimizer.step()
        >>> reset.step(), model.weight.item()
        (True, 0.5)

    Source: Noukhovitch, Lavoie, Strub, Courville 2023, arXiv:2312.07551.
    Differs: the authors' code updates the average once an iteration of rollouts or once an inner epoch; here the unit
    is the optimizer step and `update_every` says how many. Their IMDB code also resets after the first iteration
    (``skip_first=False``), and takes the average as KL reference (``reference="average"``).
    """

    def __init__(
        self, model: nn.Module, rule: ElasticReset | None = None, *, host: Host = ALONE, **settings: Any
    ) -> None:
        rule = ElasticReset(**settings) if rule is None else rule
        if rule.reset_when and host.drift is None:
            raise Unsupported("reset_when needs a drift meter beside it: attach(trainer, DriftMeter(…), …)")
        self._rule = rule
        self._model = model
        self._optimizer = host.optimizer
        self._lent_wrongly = False
        self._waits = False  # a changed average that the reference does not show yet
        self._initial = self._snapshot(host)
        self._average: WeightAverage | None = None
        if rule.target == "average":
            self._average = WeightAverage(
                model,
                decay=rule.decay,
                half_life=rule.half_life,
                update_every=rule.update_every,
                exclude=rule.exclude,
                device=rule.device,
            )
        self._cycle = Cycle(
            rule.reset_every,
            update_every=rule.update_every,
            lengthen=rule.lengthen,
            skip_first=rule.skip_first,
            reset_when=rule.reset_when,
            readings=host.drift,
        )
        averaged = self._average.decay if self._average and rule.moments == "averaged" else None
        kept = rule.moments == "kept"
        self._moments = None if kept else Moments(host.optimizer, model, rule.exclude, averaged)
        self._adaptive = None if rule.kl_target is None else AdaptiveBeta(host, rule.kl_target)
        self._reference = host.reference if rule.reference == "average" else None
        if rule.reference == "average":
            reference_of(host)  # refuses where there is none
        if rule.reference == "none":
            if host.beta is None:
                raise Unsupported("reference 'none' needs an algorithm whose KL term can be switched off: rloo or grpo")
            host.beta.set(0.0)

    @property
    def steps_since_reset(self) -> int:
        """Optimizer steps since the last reset, or since the start."""
        return self._cycle.since

    @property
    def resets(self) -> int:
        """Resets done."""
        return self._cycle.resets

    def due(self) -> bool:
        """True when the next `step()` resets."""
        return self._cycle.due()

    def ask(self) -> None:
        """Makes the next `step()` reset, whatever clock and drift say."""
        self._cycle.asked = True

    def step(self) -> bool:
        """Advances by one optimizer step; True when it reset the policy."""
        due = self.due()
        self.skip()
        if due:
            self._reset()
        self._show_reference()
        return due

    def skip(self) -> None:
        """Advances by one optimizer step without a reset; what was due stays due, the reference too."""
        if self._lent_wrongly:
            raise Unsupported(
                "snapshot 'reference' needs a reference that is the initial policy to the bit, in float32; take 'copy'"
            )
        self._cycle.advance()
        if self._adaptive is not None:
            self._adaptive.step()
        if self._average is not None and self._cycle.since % self._rule.update_every == 0:
            self._average.update()
            self._waits = True
            if self._moments is not None:
                self._moments.update()

    def state_dict(self) -> dict[str, Any]:
        """The average, the initial weights and the counters: what a bit-identical resume needs."""
        return {
            "average": {} if self._average is None else self._average.tensors(),
            "initial": dict(self._initial),
            "moments": {} if self._moments is None else dict(self._moments.averages),
            "beta": None if self._adaptive is None else self._adaptive.beta,
            **self._cycle.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state; the initial weights become the saved ones, not the model's present ones.

        Raises:
            ValueError: It is no saved state, or one of another model; nothing is taken up then.
        """
        check_state(state, STATE, of="ElasticResetState")
        check_same(state["initial"], self._initial, names=("the saved state", "the model"))
        if self._average is not None:
            self._average.assign(state["average"])
        self._lent_wrongly = self._lent_wrongly and not same(self._initial, state["initial"])  # else a resume
        overwrite(self._initial, state["initial"])
        self._cycle.load_state_dict(state)
        if self._moments is not None:
            self._moments.load(state["moments"])
        if self._adaptive is not None and state.get("beta") is not None:
            self._adaptive.beta = state["beta"]
        self._waits = True
        self._show_reference()

    @torch.no_grad()
    def _reset(self) -> None:
        """The policy first, then the average: the other way around it would be a reset to the initial model."""
        target = self._initial if self._average is None else self._average.tensors()
        overwrite(followed(self._model, self._rule.exclude), target)
        restart(self._optimizer, self._model, target)
        if self._moments is not None:
            self._moments.reset()
        self._cycle.begin()
        if self._average is not None and self._rule.resets_average_at(self._cycle.resets):
            self._average.assign(self._initial)
            self._waits = True

    def _snapshot(self, host: Host) -> dict[str, Tensor]:
        own = followed(self._model, self._rule.exclude)
        if self._rule.snapshot == "copy":
            return snapshot_of(own, self._rule.device)
        lent = {name: tensor for name, tensor in reference_of(host).items() if name in own}
        self._lent_wrongly = not same(lent, own) or any(tensor.dtype != torch.float32 for tensor in lent.values())
        return lent

    def _show_reference(self) -> None:
        if self._waits and self._reference is not None and self._average is not None:
            self._waits = False
            average = self._average.tensors()
            reference = self._reference()  # looked up anew: a forward pass may have gathered a sharded one
            overwrite({name: reference[name] for name in average}, average)


def reference_of(host: Host) -> dict[str, Tensor]:
    """The tensors of the KL term's reference, where the training shows them."""
    if host.reference is None:
        raise Unsupported("this needs the KL term's reference: give host=Host(reference=…)")
    return host.reference()


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
        average_reset_every: Optimizer steps between resets of the average, a multiple of ``reset_every``; None: at
            every reset.
        lengthen: Each cycle is so many times as long as the one before.
        skip_first: False: a first reset comes after the first update already, as in the authors' IMDB code.
        reset_when: Measures of the drift meter and values above which the policy is reset, clock or no clock.
        moments: The optimizer's moments at a reset: "kept", "cleared", or "averaged" as the weights are.
        exclude: Shell patterns of parameters that are neither averaged nor reset (a value head: ``"v_head.*"``).
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
    reset_when: dict[str, float] | None = field(default=None, hash=False)
    moments: MomentsRule = "kept"
    exclude: tuple[str, ...] = ()
    reference: Literal["initial", "average", "none"] = "initial"
    kl_target: float | None = None
    device: Literal["cpu"] | None = None
    snapshot: Literal["copy", "reference"] = "copy"

    def __post_init__(self) -> None:
        if self.target == "average":
            check_average(self.decay, self.half_life, self.update_every, device=self.device)
        else:
            check_steps("update_every", self.update_every)
        self._check_clock()
        self._check_choices()

    def settings(self) -> dict[str, Any]:
        """The first three always, the others where they are not at their defaults."""
        chosen = {
            field.name: getattr(self, field.name)
            for number, field in enumerate(dataclasses.fields(self))
            if number < 3 or getattr(self, field.name) != field.default
        }
        return {key: list(value) if isinstance(value, tuple) else value for key, value in chosen.items()}

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
            f"steady drift {kept_share(decay, updates):.1%} of a cycle's displacement is kept at the first reset, and "
            f"{decay**updates:.1%} of the average is the initial model"
        )

    def resets_average_at(self, number: int) -> bool:
        """True when the average falls back, too, at the reset of this number, counted from 1."""
        if not self.reset_average:
            return False
        if self.average_reset_every is None or self.reset_every is None:
            return True
        return number % (self.average_reset_every // self.reset_every) == 0

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
        return ElasticResetState(model, self, host=host)

    def _check_clock(self) -> None:
        every, unit = self.reset_every, self.update_every
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
        if isinstance(self.lengthen, bool) or not 1 <= self.lengthen < math.inf:
            raise ValueError(f"lengthen must be at least 1, got {self.lengthen}")
        if self.reset_when:
            limits(self.reset_when)

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
        if self.kl_target is not None and (not 0 < self.kl_target < math.inf or self.reference == "none"):
            raise ValueError("kl_target must be above 0, and needs a KL term (reference must not be 'none')")
