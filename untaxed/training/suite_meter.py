"""A small suite on the live policy every n steps: reward, abilities and tax; guards; the best checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch.distributed as dist
from torch import nn

from ..callbacks import Guard
from ..callbacks._guards import Guards, check_guards
from ..callbacks._state import COUNT, check_state
from ..errors import DataError, StoreError, Unsupported
from ..frontier import retention
from ..measuring import Subject, Suite, measure, own_precision
from ..method import ALONE, Between, Context, Host, Method, Site, check_fraction

REWARDS = ("proxy", "gold")  # what is looked at for the best checkpoint: proxy, as whoever trains sees it
RECORD = "best.json"


@dataclass(frozen=True)
class KeepBest:
    """Keeps the weights of the reading with the most reward among those of little tax.

    Args:
        directory: Gets ``best``, a model's directory, and ``best.json``, which says why.
        tax_at_most: Readings of more tax are left out; 1 keeps the most reward whatever it costs.
    """

    directory: str | Path
    tax_at_most: float = 0.1

    def __post_init__(self) -> None:
        check_fraction("tax_at_most", self.tax_at_most)


@dataclass(frozen=True)
class SuiteMeter(Method):
    """Measures a suite on the policy while it trains, and changes nothing.

    Every ``every`` optimizer steps the rewards and abilities of the suite's validation items are measured on the policy
    itself; no copy of it is made. The first reading is that of the model that training begins with: the tax is lost
    from it. Values go to the trainer's log and trackers as ``suite/reward/<name>``, ``suite/abilities/<name>`` and
    ``suite/tax``. Drift has a meter of its own (`DriftMeter`), since it needs the initial model's probabilities.

    Args:
        suite: What is measured, such as ``load_suite("suite.yaml").suite``; keep it small.
        every: Optimizer steps between readings.
        guards: What is done when a value crosses a limit: of ``tax``, ``reward.<name>`` or ``abilities.<name>``.
        keep_best: Which reading's weights are kept, if any.
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

    def __post_init__(self) -> None:
        if not isinstance(self.suite, Suite):
            raise ValueError(f'suite must be a Suite, such as load_suite("suite.yaml").suite, got {self.suite!r:.60}')
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"every must be a whole number of steps, at least 1, got {self.every!r}")
        if not measured_keys(self.suite):
            raise ValueError("the suite has neither rewards nor abilities, and drift has a meter of its own")
        check_guards(self.guards, known=("tax", *measured_keys(self.suite)))
        object.__setattr__(self, "guards", tuple(self.guards))
        if self.keep_best is not None and not self.suite.group("reward"):
            raise ValueError("keep_best goes by reward, and the suite has none")

    @property
    def asks_reset(self) -> bool:
        """True when a guard asks the method that resets, so that one has to be attached."""
        return any(guard.do == "reset" for guard in self.guards)

    def settings(self) -> dict[str, Any]:
        """The settings as plain values: of the suite its measures."""
        best = self.keep_best and {"tax_at_most": float(self.keep_best.tax_at_most)}  # wherever it lies
        guards = [guard.settings() for guard in self.guards]
        return {"suite": measured_keys(self.suite), "every": self.every, "guards": guards, "keep_best": best}

    def check(self, context: Context) -> None:
        if context.max_steps is not None and self.every > context.max_steps:
            raise Unsupported(
                f"suite_meter would never measure: every is {self.every}, training has {context.max_steps} steps; "
                "lower every"
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
        if rule.keep_best is not None and host.save is None:
            raise Unsupported("keep_best needs a training that can save its policy: give host=Host(save=…)")
        self._rule, self._model, self._host = rule, model, host
        self._guards = Guards(rule.guards, host, known=("tax", *measured_keys(rule.suite)), prefix="suite")
        self._keys = measured_keys(rule.suite)
        self._chances = {one.key: one.chance for one in rule.suite.group("abilities")}
        self._select = [f"abilities.{name}" for name in rule.suite.select]
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
        subject = Subject(self._model, self._host.tokenizer, self._rule.suite)
        with own_precision(self._model):
            found = measure(subject, "validation", self._keys).values
        values = {f"{group}.{name}": value for group in found for name, value in found[group].items()}
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            box = [values]
            dist.broadcast_object_list(box, src=0)
            values = box[0]
        return values

    def _keep(self, best: KeepBest) -> None:
        reward = next(self.reading[f"reward.{name}"] for name in REWARDS if f"reward.{name}" in self.reading)
        tax = self.reading.get("tax", 0.0)
        if tax > best.tax_at_most or reward <= self.best.get("reward", -np.inf):
            return
        assert self._host.save is not None
        self.best = {"step": self.steps, "reward": reward, "tax": tax}
        folder = Path(best.directory)
        self._host.save(folder / "best.new")
        if not dist.is_initialized() or dist.get_rank() == 0:
            _replace(folder / "best.new", folder / "best")
            (folder / RECORD).write_text(json.dumps({**self.best, "tax_at_most": best.tax_at_most}) + "\n")

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
    """The keys of the measures that are taken while training: rewards and abilities."""
    return [one.key for one in (*suite.group("reward"), *suite.group("abilities"))]


def _replace(new: Path, target: Path) -> None:
    """Puts a folder in the place of another; what a kill leaves is the old one, or the new one under its first name."""
    if not new.is_dir():
        raise DataError(f"{new} was not written by the trainer's save_model")
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)
