"""BEMA: an average whose lag is corrected by a shrinking share of the way that the policy has come."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..errors import Unsupported
from ..method import Method
from ..sites import ALONE, Between, Context, Host, Site
from ..weights import check_same
from ._followed import followed, overwrite, snapshot_of
from ._reference import Reference, Source, reference_in
from ._state import COUNT, TENSORS, check_state, is_count
from ._sync_reference import check_in_time, check_steps

Schedule = Literal["authors", "trl"]
FLAG = ("0 or 1", lambda value: is_count(value) and value < 2)
STATE = {"average": TENSORS, "initial": TENSORS, "reference": TENSORS, "steps": COUNT, "waits": FLAG}


def decaying(
    step: int, power: float, *, lag: int = 10, multiplier: float = 1.0, schedule: Schedule = "authors"
) -> float:
    r"""A weight that falls with the steps, for BEMA's average (:math:`\kappa`) and its correction (:math:`\eta`).

    .. math::
        \text{authors:}\quad \gamma\,(1 + \max(0, t - \rho))^{-p}
        \qquad\text{trl:}\quad (\rho + \gamma t)^{-p}

    Args:
        step: :math:`t`, optimizer steps so far.
        power: :math:`p`, from 0 on.
        lag: :math:`\rho`, in steps.
        multiplier: :math:`\gamma`.
        schedule: Whose.
    Example:
        >>> round(decaying(400, 0.5), 4), round(decaying(400, 0.5, schedule="trl"), 4)
        (0.0506, 0.0494)
    """
    if schedule == "trl":
        return float((lag + multiplier * step) ** -power)
    return float(multiplier * (1 + max(0, step - lag)) ** -power)


class BEMAState:
    r"""BEMA for a plain PyTorch loop: call `step()` after every `optimizer.step()`, take `variant()` at the end.

    Every ``update_every`` steps :math:`t`

    .. math::
        \bar\theta &\leftarrow (1 - \beta_t)\,\bar\theta + \beta_t\,\theta_t,
        \qquad \beta_t = \max(\gamma\,(1 + \max(0, t - \rho))^{-\kappa},\ \text{floor}) \\
        \theta'_t &= \bar\theta + \alpha_t\,(\theta_t - \theta_0),
        \qquad \alpha_t = \gamma\,(1 + \max(0, t - \rho))^{-\eta}

    The policy, its optimizer and frozen parameters are left alone. Cost: two float32 copies (float64 of what is
    float64) of the trainable parameters and one pass an update; :math:`\theta'` is made when it is asked for.

    Args:
        policy: The model that trains, at its initial weights.
        reference: Where given, :math:`\theta'` is written into it at every update: a model, or a function that gives
            its tensors by the policy's names.
        update_every: Optimizer steps between updates (the paper's :math:`\phi`).
        average_power: :math:`\kappa`; 0 follows the policy exactly.
        correction_power: :math:`\eta`; large values leave the plain average.
        lag: :math:`\rho`, in steps.
        multiplier: :math:`\gamma`, above 0; at most 1 in the authors' schedule, where it scales the weights themselves.
        floor: Least :math:`\beta_t`, in [0, 1].
        start_after: :math:`\tau`, burn-in in steps: until then average and :math:`\theta_0` are the policy.
        schedule: "authors", or "trl" for :math:`(\rho + \gamma t)` in the place of :math:`1 + \max(0, t - \rho)`.
    Raises:
        ValueError: A setting is out of range, the policy has nothing trainable, or the reference other tensors.
    Example:
        >>> policy = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(policy.weight)
        >>> bema = BEMAState(policy, update_every=1, lag=0, average_power=1.0, correction_power=1.0)
        >>> _ = nn.init.ones_(policy.weight)
        >>> bema.step(), bema.variant()["weight"].item()  # 1/2 of the way, and half of the way again
        (False, 1.0)

    Source: Block, Zhang 2025, arXiv:2508.00180, and the authors' code.
    Differs: TRL's callback uses its own schedule (``schedule="trl"`` here), has no floor by default, cannot take LoRA
    and starts anew at a resume. The authors' callback updates one step before each multiple of the interval, and keeps
    :math:`\theta_0` through the burn-in; here, as in TRL, both begin at its end. Between updates both keep the last
    :math:`\theta'`; `variant()` is that of the present step, so the two agree where it is an update's.
    """

    def __init__(
        self,
        policy: nn.Module,
        reference: Source | None = None,
        *,
        update_every: int = 400,
        average_power: float = 0.5,
        correction_power: float = 0.2,
        lag: int = 10,
        multiplier: float = 1.0,
        floor: float = 1e-4,
        start_after: int = 0,
        schedule: Schedule = "authors",
    ) -> None:
        self._rule = BEMA(
            update_every, average_power, correction_power, lag, multiplier, floor, start_after, schedule=schedule
        )
        self._policy = policy
        self._average = snapshot_of(followed(policy))
        self._initial = snapshot_of(self._average)
        self._reference = None if reference is None else Reference(policy, reference, small_moves=False)
        if self._reference is not None:
            self._reference.check(followed(policy), of="the policy")
        self.steps = 0
        self._waits = False

    def due(self) -> bool:
        """True when the next `step()` writes the reference."""
        return self._reference is not None and (self._waits or self._updates(self.steps + 1))

    def step(self) -> bool:
        """Advances by one optimizer step; False, since the policy's weights stay."""
        due = self.due()
        self.skip()
        if due and self._reference is not None:
            self._reference.write(self._corrected())
            self._waits = False
        return False

    @torch.no_grad()
    def skip(self) -> None:
        """Advances by one optimizer step without writing the reference; a write that was due stays due."""
        self._waits = self.due()
        self.steps += 1
        if self.steps == self._rule.start_after:
            self._begin()
        elif self._updates(self.steps):
            torch._foreach_lerp_(list(self._average.values()), self._now(), self._weight())

    @torch.no_grad()
    def variant(self) -> dict[str, Tensor]:
        """The bias-corrected average as of this step, by full parameter name, in the parameters' dtypes."""
        values = self._corrected()
        return {name: values[name].to(tensor) for name, tensor in followed(self._policy).items()}

    def state_dict(self) -> dict[str, Any]:
        """The average, the initial weights, a written reference and the counter: what a resume needs."""
        return {
            "average": dict(self._average),
            "initial": dict(self._initial),
            "reference": self._reference.tensors() if self._reference is not None else {},
            "steps": self.steps,
            "waits": int(self._waits),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state; the initial weights become the saved ones.

        Raises:
            ValueError: It is no saved state, or one of another model; nothing is taken up then.
        """
        check_state(state, STATE, of="BEMAState")
        for mine, saved in ((self._average, state["average"]), (self._initial, state["initial"])):
            check_same(saved, mine, names=("the saved state", "the model"))
        if self._reference is not None:
            self._reference.check(state["reference"], of="the saved state")
            self._reference.load(state["reference"])
        overwrite(self._average, state["average"])
        overwrite(self._initial, state["initial"])
        self.steps, self._waits = state["steps"], bool(state["waits"])

    def _updates(self, step: int) -> bool:
        return step > self._rule.start_after and (step - self._rule.start_after) % self._rule.update_every == 0

    def _begin(self) -> None:
        for mine in (self._average, self._initial):
            torch._foreach_copy_(list(mine.values()), self._now())

    def _now(self) -> list[Tensor]:
        """The policy's present weights in the average's dtypes and order."""
        current = followed(self._policy)
        check_same(self._average, current, names=("the average", "the model"))
        return [current[name].to(tensor.dtype) for name, tensor in self._average.items()]

    def _weight(self) -> float:
        return max(self._rule.decaying(self.steps, self._rule.average_power), self._rule.floor)

    def _corrected(self) -> dict[str, Tensor]:
        now, initial = self._now(), list(self._initial.values())
        average = list(self._average.values())
        if self.steps <= self._rule.start_after:
            return dict(zip(self._average, map(torch.clone, now), strict=True))  # not the live weights
        if not self._updates(self.steps):  # between updates: as if one came now
            average = list(torch._foreach_lerp(average, now, self._weight()))
        share = self._rule.decaying(self.steps, self._rule.correction_power)
        moved = torch._foreach_add(average, torch._foreach_sub(now, initial), alpha=share)
        return dict(zip(self._average, moved, strict=True))


@dataclass(frozen=True)
class BEMA(Method):
    """Keeps a bias-corrected average beside the policy, which is what is measured and shipped.

    Args:
        update_every: Optimizer steps between updates of the average.
        average_power: How fast the weight of a new policy in the average falls (kappa).
        correction_power: How fast the share of the way come that is added falls (eta).
        lag: Steps before the weights begin to fall (rho).
        multiplier: Of the weights (gamma).
        floor: Least weight of a new policy in the average.
        start_after: Burn-in, in optimizer steps (tau).
        into: "variant" leaves training alone; "reference" also writes it into the KL term's reference at every update.
        schedule: "authors" or "trl".
    """

    name: ClassVar[str] = "bema"
    title: ClassVar[str] = "BEMA"
    source: ClassVar[str] = "Block, Zhang 2025, arXiv:2508.00180"
    summary: ClassVar[str] = "an average of the policy with its lag corrected, shipped in the policy's place"
    acts: ClassVar[frozenset[Site]] = frozenset({"between"})

    update_every: int = 400
    average_power: float = 0.5
    correction_power: float = 0.2
    lag: int = 10
    multiplier: float = 1.0
    floor: float = 1e-4
    start_after: int = 0
    into: Literal["variant", "reference"] = "variant"
    schedule: Literal["authors", "trl"] = "authors"

    def __post_init__(self) -> None:
        check_steps("update_every", self.update_every)
        for name, value in (("lag", self.lag), ("start_after", self.start_after)):
            if not is_count(value):
                raise ValueError(f"{name} must be a whole number of steps from 0 on, got {value!r}")
        most = 1.0 if self.schedule == "authors" else math.inf
        _check_number("average_power", self.average_power, 0, math.inf)
        _check_number("correction_power", self.correction_power, 0, math.inf)
        _check_number("multiplier", self.multiplier, math.nextafter(0, 1), most)
        _check_number("floor", self.floor, 0, 1)
        if self.schedule == "trl" and self.lag < 1:
            raise ValueError(f"lag must be at least 1 in TRL's schedule, got {self.lag}")
        for name, word, known in (("into", self.into, INTO), ("schedule", self.schedule, SCHEDULES)):
            if word not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, got {word!r}")

    @property
    def writes_reference(self) -> bool:
        return self.into == "reference"

    @property
    def ships_other(self) -> bool:
        return True

    def decaying(self, step: int, power: float) -> float:
        """A weight of these settings at a step."""
        return decaying(step, power, lag=self.lag, multiplier=self.multiplier, schedule=self.schedule)

    def check(self, context: Context) -> None:
        first = self.start_after + self.update_every
        if self.writes_reference:
            check_in_time(self.name, "start_after + update_every", first, context)
        elif context.max_steps is not None and first > context.max_steps:
            raise Unsupported(
                f"bema would never update its average: start_after + update_every is {first}, training has "
                f"{context.max_steps} steps; lower update_every"
            )

    def between(self, model: nn.Module, host: Host = ALONE) -> Between:
        settings = {key: value for key, value in self.settings().items() if key != "into"}
        return BEMAState(model, reference_in(host, self.name) if self.writes_reference else None, **settings)


INTO, SCHEDULES = ("variant", "reference"), ("authors", "trl")


def _check_number(name: str, value: object, least: float, most: float) -> None:
    """Raises `ValueError` unless a setting is a finite number in its range."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not least <= float(value) <= most:  # type: ignore[arg-type]
        ends = f"in [{least:g}, {most:g}]" if least == 0 and most < math.inf else ""
        words = ends or ("from 0 on" if least == 0 else f"above 0{'' if most == math.inf else f', at most {most:g}'}")
        raise ValueError(f"{name} must be a finite number {words}, got {value!r}")
