"""A small suite on the live policy every n steps: reward, abilities and tax; guards; the best checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import nn

from ..callbacks import Guard
from ..callbacks._guards import Guards, check_guards
from ..callbacks._state import COUNT, check_state
from ..errors import StoreError, Unsupported
from ..frontier import retention
from ..measuring import Subject, Suite, measure, own_precision
from ..method import Method
from ..sites import ALONE, Between, Context, Host, Site
from .apart import ReadsSaved, from_first, read_apart, sharded
from .keep_best import KeepBest

REWARDS = ("proxy", "gold")  # what is looked at for the best checkpoint: proxy, as whoever trains sees it
FROM_FILE = 'give the suite as load_suite("suite.yaml") returns it (untaxed.comparison): another process loads it, too'


@dataclass(frozen=True)
class SuiteMeter(Method):
    """Measures a suite on the policy while it trains, and changes nothing.

    Every ``every`` optimizer steps the rewards and abilities of the suite's validation items are measured on the policy
    itself; no copy of it is made. A sharded policy whose suite has tasks of lm-evaluation-harness, which read whole
    models only, is saved to a temporary folder and read there by a process of its own. The first reading is that of the
    model that training begins with: the tax is lost from it. Values go to the trainer's log and trackers as
    ``suite/reward/<name>``, ``suite/abilities/<name>`` and ``suite/tax``. Drift has a meter of its own (`DriftMeter`),
    since it needs the initial model's probabilities.

    Args:
        suite: What is measured, such as ``load_suite("suite.yaml")``; keep it small. A `Suite` will do where this
            process reads. What compares with the initial model (win rates, preference pairs) is left out.
        every: Optimizer steps between readings.
        guards: What is done when a value crosses a limit: of ``tax``, ``reward.<name>`` or ``abilities.<name>``.
        keep_best: Which reading's weights are kept, if any.
        in_process: Whether the policy itself is read, rather than its saved weights by a process of its own, on a GPU
            with room for them or else on the CPU; None: wherever the suite can be read so.
    """

    name: ClassVar[str] = "suite_meter"
    title: ClassVar[str] = "Suite meter"
    source: ClassVar[str] = "ours"
    summary: ClassVar[str] = "measures rewards and abilities while it trains; guards act, the best checkpoint is kept"
    acts: ClassVar[frozenset[Site]] = frozenset({"between"})
    watches: ClassVar[bool] = True

    suite: Any
    every: int = 50
    guards: Sequence[Guard] = ()
    keep_best: KeepBest | None = None
    in_process: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.suite, Suite | ReadsSaved):
            raise ValueError(f'suite must be a suite, such as load_suite("suite.yaml"), got {self.suite!r:.60}')
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"every must be a whole number of steps, at least 1, got {self.every!r}")
        if self.in_process is False and not isinstance(self.suite, ReadsSaved):
            raise ValueError(FROM_FILE)
        if not measured_keys(self.measured):
            raise ValueError("the suite has neither rewards nor abilities, and drift has a meter of its own")
        check_guards(self.guards, known=("tax", *measured_keys(self.measured)))
        object.__setattr__(self, "guards", tuple(self.guards))
        if self.keep_best is not None and not any(f"reward.{name}" in measured_keys(self.measured) for name in REWARDS):
            raise ValueError("keep_best goes by reward, and the suite has none called proxy or gold")

    @property
    def measured(self) -> Suite:
        """The suite's measures."""
        found: Suite = self.suite if isinstance(self.suite, Suite) else self.suite.suite
        return found

    def reads_apart(self, *, sharded: bool) -> bool:
        """Whether the policy is read by a process of its own."""
        if self.in_process is not None:
            return not self.in_process
        return sharded and bool(whole_only(self.measured))

    @property
    def asks_reset(self) -> bool:
        """True when a guard asks the method that resets, so that one has to be attached."""
        return any(guard.do == "reset" for guard in self.guards)

    def settings(self) -> dict[str, Any]:
        """The settings as plain values: of the suite its measures."""
        best = self.keep_best and {"tax_at_most": float(self.keep_best.tax_at_most)}  # wherever it lies
        guards = [guard.settings() for guard in self.guards]
        return {
            **{"suite": measured_keys(self.measured), "every": self.every, "guards": guards, "keep_best": best},
            "in_process": self.in_process,
        }

    def check(self, context: Context) -> None:
        if context.max_steps is not None and self.every > context.max_steps:
            raise Unsupported(
                f"suite_meter would never measure: every is {self.every}, training has {context.max_steps} steps; "
                "lower every"
            )
        self.check_place(sharded=context.backend == "fsdp2", lora=context.lora)

    def check_place(self, *, sharded: bool, lora: bool) -> None:
        """Raises `Unsupported` where the suite cannot be read on such a policy, or not where it is asked to."""
        names = ", ".join(whole_only(self.measured))
        if sharded and names and self.in_process:
            raise Unsupported(f"{names} cannot be read on a sharded policy; leave in_process out")
        if not self.reads_apart(sharded=sharded):
            return
        if not isinstance(self.suite, ReadsSaved):
            raise Unsupported(f"{names} cannot be read on a sharded policy: {FROM_FILE}")
        if lora:
            raise Unsupported(
                "a process of its own reads saved weights, and of a policy with an adapter (LoRA) that alone is saved"
                + (f"; take {names} out of the suite" if names else "; leave in_process out")
            )

    def between(self, model: nn.Module, host: Host = ALONE) -> Between:
        return SuiteMeterState(model, self, host)


class SuiteMeterState:
    """The suite meter bound to one policy; see `SuiteMeter`.

    Raises:
        Unsupported: There is no tokenizer, or the training around cannot save what is to be kept.
    """

    def __init__(self, model: Any, rule: SuiteMeter, host: Host = ALONE) -> None:
        if host.tokenizer is None:
            raise Unsupported("a suite is measured on texts and needs a tokenizer: give host=Host(tokenizer=…)")
        lies_sharded = sharded(model)
        rule.check_place(sharded=lies_sharded, lora=hasattr(model, "peft_config"))
        self._apart = rule.reads_apart(sharded=lies_sharded)
        if self._apart and host.save is None:
            raise Unsupported("the policy is read from a saved copy; a plain loop says how: give host=Host(save=…)")
        if rule.keep_best is not None and host.save is None:
            raise Unsupported("keep_best needs a training that can save its policy: give host=Host(save=…)")
        self._rule, self._model, self._host = rule, model, host
        self._guards = Guards(rule.guards, host, known=("tax", *measured_keys(rule.measured)), prefix="suite")
        self._keys = measured_keys(rule.measured)
        self._chances = {one.key: one.chance for one in rule.measured.group("abilities")}
        self._select = [f"abilities.{name}" for name in rule.measured.select]
        self.steps = 0
        self.initial = self._values()
        self.reading = {"step": 0, **self.initial, "tax": 0.0}
        self.best: dict[str, float] = {}

    def due(self) -> bool:
        """Never: a meter replaces no weights."""
        return False

    def skip(self) -> None:
        """As `step()`."""
        self.step()

    def step(self) -> bool:
        """Advances by one optimizer step; True when there is a new `reading`."""
        self.steps += 1
        if self.steps % self._rule.every:
            return False
        values = self._values()
        tax = self.tax(values)
        self.reading = {"step": self.steps, **values, **({} if tax is None else {"tax": tax})}
        self._tell({f"suite/{key.replace('.', '/')}": value for key, value in self.reading.items() if key != "step"})
        if acted := self._guards.look(self.reading):
            self._tell(acted)
        if self._rule.keep_best is not None:
            self._keep(self._rule.keep_best)
        return True

    def tax(self, values: Mapping[str, float]) -> float | None:
        """Mean share lost of the select abilities that initial has above chance; None where it has none."""
        counting = [key for key in self._select if self.initial[key] > self._chances[key]]
        if not counting:
            return None
        return 1 - float(np.mean([retention(values[k], self.initial[k], self._chances[k]) for k in counting]))

    def state_dict(self) -> dict[str, Any]:
        """What initial measured, the count of steps, the last reading, the best one and the guards' limits."""
        return {
            "steps": self.steps,
            **{name: [[k, v] for k, v in getattr(self, name).items()] for name in ("initial", "reading", "best")},
            "crossed": list(self._guards.crossed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state; the tax is lost from its initial model then.

        Raises:
            StoreError: It is no saved state, or one of another suite or other guards; nothing is taken up then.
        """
        check_state(state, STATE, of="SuiteMeterState")
        if [key for key, _ in state["initial"]] != list(self.initial):
            raise StoreError(
                "the saved suite meter measures something else; give a state that was saved with this suite"
            )
        if len(state["crossed"]) != len(self._guards.crossed):
            raise StoreError("the saved suite meter has other guards; give a state that was saved with these")
        self.steps = state["steps"]
        self.initial, self.reading, self.best = (dict(state[name]) for name in ("initial", "reading", "best"))
        self._guards.crossed = [bool(value) for value in state["crossed"]]

    def _values(self) -> dict[str, float]:
        """Every measure's value; under several processes all get the first one's, since guards must act alike."""
        if self._apart:
            assert self._host.save is not None
            return read_apart(self._rule.suite, self._host.save, self._keys)
        subject = Subject(self._model, self._host.tokenizer, self._rule.measured)
        with own_precision(self._model):
            found = measure(subject, "validation", self._keys).values
        values = {f"{group}.{name}": value for group in found for name, value in found[group].items()}
        return from_first(lambda: values)

    def _keep(self, best: KeepBest) -> None:
        reward = next(self.reading[f"reward.{name}"] for name in REWARDS if f"reward.{name}" in self.reading)
        tax = self.reading.get("tax", 0.0)
        if tax > best.tax_at_most or reward <= self.best.get("reward", -np.inf):
            return
        assert self._host.save is not None
        self.best = {"step": self.steps, "reward": reward, "tax": tax}
        best.keep(self._host.save, self.best)

    def _tell(self, values: Mapping[str, float]) -> None:
        if self._host.log is not None:
            self._host.log(values)


STATE = {
    "steps": COUNT,
    **{
        name: ("pairs of name and value", lambda value: isinstance(value, list))
        for name in ("initial", "reading", "best")
    },
    "crossed": ("a list", lambda value: isinstance(value, list)),
}


def measured_keys(suite: Suite) -> list[str]:
    """The keys of the measures that are taken while training: rewards and abilities of the policy alone."""
    return [one.key for one in (*suite.group("reward"), *suite.group("abilities")) if one.against is None]


def whole_only(suite: Suite) -> list[str]:
    """The names of those that cannot be read on a sharded policy."""
    keys = measured_keys(suite)
    return [one.name for one in suite.measures if one.key in keys and not one.sharded]
