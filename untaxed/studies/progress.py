"""How far one run is: its step, its reward and tax at the last measurement, and the time that is left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..frontier import retention
from .arms import RunPlan
from .events import Event, Listener
from .points import Point
from .store import Store

if TYPE_CHECKING:
    from transformers import Trainer

    from .bench import Bench

INTERVAL_S = 0.2  # between two events of one run


class Reporter:
    """Tells a listener how a run goes on.

    Attributes:
        warnings: What came up so far, each text once.
        started: True once the run is past what is the same for every run; an error before is the user's input.
    """

    def __init__(self, bench: Bench, store: Store, run: RunPlan, listen: Listener) -> None:
        self.warnings: list[str] = []
        self.started = False
        self._bench, self._run, self._listen = bench, run, listen
        self._initial = _initial_values(store)
        self._numbers: dict[str, float | None] = {"reward": None, "tax": None}
        self._step, self._first_step, self._began, self._said = 0, 0, time.monotonic(), 0.0

    def follow(self, trainer: Trainer) -> None:
        """Reports every step of a trainer that is about to train."""
        from .ticker import Ticker

        trainer.add_callback(Ticker(self))

    def begin(self, step: int) -> None:
        self.started = True
        self._first_step, self._began = step, time.monotonic()

    def step(self, step: int) -> None:
        self._step = step
        if time.monotonic() - self._said > INTERVAL_S:
            self._say("run", "")

    def measured(self, point: Point) -> None:
        """Takes up the numbers of a point that was just measured."""
        self._step = point["step"]
        reward = point["validation"]["reward"]
        self._numbers = {
            "reward": reward["gold"] if reward["gold"] is not None else reward.get("proxy"),
            "tax": self._tax(point["validation"]["abilities"]),
        }
        self._say("run", "")

    def stage(self, text: str, of: str = "") -> None:
        """Says what is done after training; `of`: the variant whose making it is a part of."""
        self._step = self._bench.steps
        if not of:
            self._say("run", text)
        elif time.monotonic() - self._said > INTERVAL_S:
            self._say("run", f"{of}: {text}")

    def done(self) -> None:
        self._step = self._bench.steps
        self._say("done", "")

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
        self._say("warning", text)

    def failed(self, why: str) -> None:
        self._say("failed", why)

    def _say(self, kind: str, text: str) -> None:
        self._said = time.monotonic()
        event = Event(
            kind, self._run.key, text, self._step, self._bench.steps, **self._numbers, seconds_left=self._left()
        )
        self._listen(event)

    def _left(self) -> float | None:
        made = self._step - self._first_step
        return (time.monotonic() - self._began) / made * (self._bench.steps - self._step) if made > 0 else None

    def _tax(self, abilities: dict[str, Any]) -> float | None:
        """Mean tax on the select abilities; those where `initial` is at chance say nothing."""
        chance = {one.name: one.chance for one in self._bench.suite.group("abilities")}
        kept = [
            retention(abilities[name], self._initial[name], chance[name])
            for name in self._bench.suite.select
            if abilities.get(name) is not None and (self._initial.get(name) or 0.0) > chance[name]
        ]
        return 1 - sum(kept) / len(kept) if kept else None


def _initial_values(store: Store) -> dict[str, Any]:
    initial = store.initial_result()
    return initial["points"][0]["validation"]["abilities"] if initial is not None else {}
