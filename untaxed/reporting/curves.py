"""What a measure does over training: seed means of validation at every step, resets as a fall at one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .directory import StudyFiles

Point = Mapping[str, Any]
PHASES = (None, "before", "after")


@dataclass(frozen=True)
class Curve:
    """One measure of one arm over steps; at a reset the step stands twice, before and after.

    Attributes:
        low: The lowest seed at every step; `high` the highest.
        resets: The steps at which the weights were reset.
    """

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    resets: list[int]


def trained_points(files: StudyFiles, arm: str, values: Mapping[str, Any]) -> list[list[Point]]:
    """The points along training, one list a seed, of an arm at one choice of its swept values.

    Empty for an arm that trains nothing: its variants stand at one step, and the runs are another arm's.
    """
    setting = files.setting(arm, values)
    if setting is None or setting["variant"] is not None:
        return []
    runs = [files.runs[key] for key in setting["runs"].values() if key in files.runs]
    return [[p for p in run["points"] if p["variant"] is None] for run in runs if run["points"]]


def curve(runs: Sequence[Sequence[Point]], group: str, name: str, initial: Point | None) -> Curve:
    """One measure over the steps that all seeds have."""
    tables = [{(p["step"], PHASES.index(p["phase"])): _value(p, group, name) for p in points} for points in runs]
    moments = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    start = _value(initial, group, name) if initial else None
    rows = [(0, [start])] if moments else []
    rows += [(step, [table[step, phase] for table in tables]) for step, phase in moments]
    known = [(step, found) for step, values in rows if (found := [value for value in values if value is not None])]
    return Curve(
        steps=[step for step, _ in known],
        mean=[sum(values) / len(values) for _, values in known],
        low=[min(values) for _, values in known],
        high=[max(values) for _, values in known],
        resets=[step for step, phase in moments if PHASES[phase] == "after"],
    )


def cycles(whole: Curve) -> list[Curve]:
    """The parts of a curve between its resets, each from its own start at step 0; the first starts at initial."""
    cuts = [i for i in range(1, len(whole.steps)) if whole.steps[i] == whole.steps[i - 1]]  # before, after
    return [_part(whole, *ends) for ends in zip([0, *cuts], [*cuts, len(whole.steps)])]


def alongside(whole: Curve, other: Curve) -> list[Curve]:
    """The parts of a curve without resets over the same steps as the cycles of another."""
    bounds = [other.steps[0], *other.resets, other.steps[-1]] if other.steps else []
    parts = []
    for start, end in pairwise(bounds):
        inside = [i for i, step in enumerate(whole.steps) if start <= step <= end]
        if inside:
            parts.append(_part(whole, inside[0], inside[-1] + 1))
    return parts


def _part(whole: Curve, start: int, end: int) -> Curve:
    first = whole.steps[start]
    columns = (whole.mean[start:end], whole.low[start:end], whole.high[start:end])
    return Curve([step - first for step in whole.steps[start:end]], *columns, resets=[])


def _value(point: Point, group: str, name: str) -> float | None:
    return ((point["validation"] or {}).get(group) or {}).get(name)
