"""What a study says while it works; who listens decides how it looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: ``plan`` (a run will be made), ``run`` (it moved on), ``done``, ``failed``, ``tested``, ``warning``
            (once a study, whichever run said it first), or ``note``.
        key: The run; empty for a note.
        text: The run's label or stage, why it failed, or the note.
        step: Optimizer steps taken.
        steps: Of so many.
        reward: Gold reward where known, else the proxy, at the last measurement.
        tax: Mean over the select abilities at the last measurement, on validation.
        seconds_left: Of this run; None while unknown.
    """

    kind: str
    key: str = ""
    text: str = ""
    step: int = 0
    steps: int = 0
    reward: float | None = None
    tax: float | None = None
    seconds_left: float | None = None


Listener = Callable[[Event], None]


def counted(count: int, thing: str) -> str:
    """A number with its noun: ``1 run``, ``2 runs``."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def ignore(event: Event) -> None:
    """Listens to nothing."""
