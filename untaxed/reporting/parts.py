"""Blocks of layers in the report: the share of initial that each was given, and what each one alone does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..frontier import retention
from ..merging import PARTS, PartAveraging
from .axes import Look
from .curves import Curve
from .directory import StudyFiles
from .numbers import plain_number
from .plots import CurvePlot, curve_plot

Point = Mapping[str, Any]
KINDS = {"last": "last step", "best_proxy": "best proxy reward"}


@dataclass(frozen=True)
class Shares:
    """What the blocks were given in one setting: the mean over seeds, and from the lowest to the highest."""

    arm: str
    setting: str
    of: str
    method: str
    blocks: list[tuple[str, str]]


def shares(files: StudyFiles) -> list[Shares]:
    """The ratios that methods learned or searched, by arm, setting and kind of checkpoint."""
    found = []
    for arm, setting, of, points in _variants(files):
        for number, first in enumerate(points[0].get("found", [])):
            ratios = [point["found"][number]["ratios"] for point in points if "ratios" in first]
            blocks = [(name, _told([one[name] for one in ratios])) for name in (ratios[0] if ratios else ())]
            found.append(Shares(arm, setting["setting"], KINDS[of], first["method"], blocks))
    return found


def _told(values: Sequence[float]) -> str:
    mean, low, high = sum(values) / len(values), min(values), max(values)
    span = f" ({plain_number(low, 2)} to {plain_number(high, 2)})" if len(values) > 1 else ""
    return plain_number(mean, 2) + span


def _variants(files: StudyFiles) -> Iterator[tuple[str, Mapping[str, Any], str, list[Point]]]:
    """Arm, setting, kind of checkpoint and a point a seed, of all variants that were measured."""
    for arm in files.study["arms"]:
        for setting in arm["settings"]:
            for of in KINDS if setting["variant"] is not None else ():
                wanted = {**setting["variant"], "of": of}
                runs = [files.runs[key] for key in setting["runs"].values() if key in files.runs]
                points = [point for run in runs for point in run["points"] if point["variant"] == wanted]
                if points:
                    yield arm["arm"], setting, of, points


def part_panels(files: StudyFiles, styles: Mapping[str, Look]) -> list[tuple[Mapping[str, str], CurvePlot]]:
    """Reward and tax on validation as each block alone goes back to initial, block by block, beside plain's last step.

    Empty where no arm is part-wise averaging.
    """
    lines = _lines(files)
    if not lines:
        return []
    plain = next((arm for arm in files.study["arms"] if arm["plain"]), None)
    runs = [files.runs[key] for key in plain["settings"][0]["runs"].values() if key in files.runs] if plain else []
    last = [[p for p in run["points"] if p["variant"] is None][-1] for run in runs if run["points"]]
    panels = []
    for about in _asked(files):
        curves = {arm: _curve(points, files, about) for arm, points in lines.items()}
        blocks = sorted({step for curve in curves.values() for step in curve.steps})
        if plain and last:
            curves[plain["arm"]] = _curve(dict.fromkeys(blocks, last), files, about)
        looks = {name: styles[name.split("\0")[0]] for name in curves}
        labels = {name: name.split("\0")[1] for name in curves if "\0" in name}
        if plot := curve_plot(curves, looks, labels=labels):
            panels.append((about, _with_ticks(plot, blocks)))
    return panels


def _asked(files: StudyFiles) -> list[Mapping[str, str]]:
    """What is drawn: every reward, and the tax."""
    rewards = [one for one in files.study["measures"] if one["group"] == "reward"]
    return [*rewards, {"group": "tax", "name": "tax", "unit": "on select abilities"}]


def _with_ticks(plot: CurvePlot, blocks: Sequence[int]) -> CurvePlot:
    """The plot with a tick a block in the place of round numbers."""
    names = PARTS if list(blocks) == [0, 1, 2] else tuple(map(str, blocks))
    return replace(plot, x=replace(plot.x, ticks=[(plot.x(block), name) for block, name in zip(blocks, names)]))


def _lines(files: StudyFiles) -> dict[str, dict[int, list[Point]]]:
    """Points by arm, share of initial and number of the block; those of the last checkpoint."""
    lines: dict[str, dict[int, list[Point]]] = {}
    for arm, setting, of, points in _variants(files):
        variant = setting["variant"]
        if variant["method"] == PartAveraging.name and of == "last":
            given = PartAveraging(**{key: value for key, value in variant.items() if key != "method"})
            names = given.blocks if isinstance(given.blocks, dict) else range(given.blocks)
            line = lines.setdefault(f"{arm}\0{given.initial_share:g}", {})
            line[given.place(len(names), tuple(map(str, names)))] = points
    return lines


def _curve(points: Mapping[int, Sequence[Point]], files: StudyFiles, about: Mapping[str, str]) -> Curve:
    """A number by block, at the blocks at which every seed has it."""
    steps, means, lows, highs = list[int](), list[float](), list[float](), list[float]()
    for block in sorted(points):
        found = [_number(files, point, about) for point in points[block]]
        values = [value for value in found if value is not None]
        if values and len(values) == len(found):
            steps.append(block)
            means.append(sum(values) / len(values))
            lows.append(min(values))
            highs.append(max(values))
    return Curve(steps, means, lows, highs, resets=[])


def _number(files: StudyFiles, point: Point, about: Mapping[str, str]) -> float | None:
    return _tax(files, point) if about["group"] == "tax" else point["validation"]["reward"].get(about["name"])


def _tax(files: StudyFiles, point: Point) -> float | None:
    """Tax of one point on the select abilities that count."""
    if files.initial is None:
        return None
    out = {one["ability"] for one in (files.summary or {"left_out": []})["left_out"]}
    chance = {one["name"]: one["chance"] for one in files.study["measures"] if one["group"] == "abilities"}
    start, values = (one["validation"]["abilities"] for one in (files.initial, point))
    names = [name for name in files.study["select"] if name not in out and (start[name] or 0) > chance[name]]
    if not names or any(values.get(name) is None for name in names):
        return None
    return 1 - sum(float(retention(values[name], start[name], chance[name])) for name in names) / len(names)
