"""A drift meter for methods that act on measured drift, made of a task."""

from __future__ import annotations

from collections.abc import Sequence

from ..callbacks import DriftMeter
from ..callbacks._guards import MEASURES
from ..method import Method
from .held_out import MOST
from .task import Task

EVERY = 5  # optimizer steps between readings


def with_meter(methods: Sequence[Method], task: Task, *, steps: int) -> list[Method]:
    """The methods, behind a drift meter where one of them reads it and there is none.

    It measures on the suite's validation prompts, never on test, drawn as the suite draws, and on its general ones
    where a method goes by these. Every few steps, whatever is measured for the study: when a run resets must not depend
    on how often it is looked at. `steps`: those of the run.
    """
    asked = {measure for method in methods for measure in getattr(method, "reset_when", None) or ()}
    if not asked or any(method.name == DriftMeter.name for method in methods):
        return list(methods)
    drawn, general = task.suite.sampling, task.suite.general
    meter = DriftMeter(
        task.suite.prompts["validation"][:MOST],
        every=min(EVERY, steps),
        max_new_tokens=drawn.max_new_tokens,
        temperature=drawn.temperature,
        seed=drawn.seed,
        general_prompts=general["validation"][:MOST] if general and asked - set(MEASURES) else None,
    )
    return [meter, *methods]
