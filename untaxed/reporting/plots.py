"""Geometry of the plots; the templates draw it as inline SVG whose colours follow the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .axes import Axis, Look, axis, looks
from .curves import Curve
from .numbers import Notes, Summary
from .tables import arm_name


@dataclass(frozen=True)
class Mark:
    """One point of the frontier with its two intervals, in pixels."""

    x: float
    y: float
    left: float
    right: float
    top: float
    bottom: float
    strong: bool
    title: str


@dataclass(frozen=True)
class FrontierPlot:
    """Reward against ability kept: marks and a path an arm, the initial model, and where plain's gain is matched."""

    width: int
    height: int
    x: Axis
    y: Axis
    x_title: str
    y_title: str
    initial: tuple[float, float]
    matched: float | None
    arms: list[tuple[Look, str, list[Mark]]]
    summary_text: str


def arm_looks(summary: Summary) -> dict[str, Look]:
    """The look of every arm of a summary."""
    return looks((entry["arm"], entry["plain"], entry["early_stopping"]) for entry in summary["arms"])


def frontier_plot(summary: Summary, *, width: int, height: int) -> FrontierPlot | None:
    """The reward-tax frontier; None where no point has both numbers."""
    reward = summary["reward"]
    start = summary["initial"]["reward"].get(reward) if reward else None
    found = [(entry, list(_frontier_points(entry, reward))) for entry in summary["arms"]]
    points = [point for _, some in found for point in some]
    if start is None or start["mean"] is None or not points:
        return None
    gain = summary["gain"]["mean"]
    goal = start["mean"] + 0.95 * gain if gain is not None and gain > 0 else None
    x = axis(_edges([start, *(r for _, r, _ in points)]), 52, width - 14, most=9 if width > 500 else 4)
    kept = {1.0, *(1 - edge for edge in _edges(tax for _, _, tax in points))}
    y = axis(kept if len(kept) > 1 else {0.5, 1.0}, height - 44, 14, most=7)
    drawn = []
    for entry, some in found:
        marks = [_mark(entry, point, x, y) for point in some]
        path = [(x(start["mean"]), y(1.0)), *sorted((mark.x, mark.y) for mark in marks)]
        drawn.append((arm_looks(summary)[entry["arm"]], _path(path) if not entry["plain"] else "", marks))
    return FrontierPlot(
        width, height, x, y, f"{reward} reward", "select abilities kept", (x(start["mean"]), y(1.0)),
        None if goal is None else x(goal), drawn, _in_words(summary, found),
    )  # fmt: skip


def legend_places(styles: Mapping[str, Look], width: int) -> tuple[list[tuple[str, Look, float, int]], int]:
    """Where each arm's name stands above a picture, as (name, look, x, row), and how many rows that takes."""
    places, x, row = [], 10.0, 0
    for name, look in styles.items():
        needed = 30 + 7.5 * len(name)  # 13 pixel letters are about 7.5 wide
        if x > 10 and x + needed > width:
            x, row = 10.0, row + 1
        places.append((name, look, x, row))
        x += needed
    return places, row + 1


Found = tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]


def _frontier_points(entry: Mapping[str, Any], reward: str | None) -> Iterable[Found]:
    for point in entry["points"]:
        gained, tax = point["reward"].get(reward), point["tax"]["select"]
        if gained and gained["mean"] is not None and tax["mean"] is not None:
            yield point, gained, tax


def _edges(intervals: Iterable[Mapping[str, Any]]) -> list[float]:
    return [one[edge] for one in intervals for edge in ("low", "mean", "high") if one[edge] is not None]


def _mark(entry: Mapping[str, Any], found: Found, x: Axis, y: Axis) -> Mark:
    point, reward, tax = found
    notes = Notes()
    r, t = notes.cell(reward), notes.cell(tax)
    title = f"{entry['arm']}, {point['setting']}: reward {r.mean} ({r.span}), tax {t.mean} ({t.span})"
    strong = point["setting"] == entry["shown"]["setting"]
    return Mark(
        x(reward["mean"]), y(1 - tax["mean"]), x(reward["low"]), x(reward["high"]),
        y(1 - tax["low"]), y(1 - tax["high"]), strong, title,
    )  # fmt: skip


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{px:g},{py:g}" for px, py in points)


def _in_words(summary: Summary, found: Sequence[tuple[Mapping[str, Any], list[Found]]]) -> str:
    shown = [f"{entry['arm']} ({len(some)} point{'' if len(some) == 1 else 's'})" for entry, some in found if some]
    return f"{summary['reward']} reward against the share of select abilities that is kept: {', '.join(shown)}."


@dataclass(frozen=True)
class CurvePlot:
    """One measure over training steps: a mean path, a band over seeds and reset ticks an arm."""

    width: int
    height: int
    x: Axis
    y: Axis
    lines: list[tuple[Look, str, str, tuple[float, float], list[float], str]]  # look, path, band, end, resets, label


def curve_plot(
    curves: Mapping[str, Curve],
    styles: Mapping[str, Look],
    *,
    share: bool = False,
    labels: Mapping[str, str] | None = None,
    width: int = 340,
    height: int = 200,
) -> CurvePlot | None:
    """The curves of one measure by arm; None where there are none. `share`: whether it is one, from 0 to 1; `labels`
    stand at the ends of their curves.
    """
    curves = {arm: curve for arm, curve in curves.items() if curve.steps}
    if not curves:
        return None
    x = axis((step for curve in curves.values() for step in curve.steps), 44, width - 8, most=5, pad=0.02)
    edges = [edge for curve in curves.values() for edge in (*curve.low, *curve.high)]
    y = axis(edges, height - 26, 8, most=5, share=share)
    lines = []
    for arm, curve in curves.items():
        mean = [(x(step), y(value)) for step, value in zip(curve.steps, curve.mean)]
        upper = [(x(step), y(value)) for step, value in zip(curve.steps, curve.high)]
        lower = [(x(step), y(value)) for step, value in zip(curve.steps, curve.low)]
        resets = [x(step) for step in curve.resets]
        label = (labels or {}).get(arm, "")
        lines.append((styles[arm], _path(mean), _path(upper + lower[::-1]) + "z", mean[-1], resets, label))
    return CurvePlot(width, height, x, y, lines)


@dataclass(frozen=True)
class Bar:
    """One difference to early stopping: positions in percent of the row's width."""

    arm: str
    look: Look
    mean: str
    span: str
    better: str
    left: float
    width: float
    middle: float


def difference_bars(summary: Summary) -> tuple[list[Bar], float]:
    """The differences to early stopping, largest first, and where 0 lies, in percent."""
    known = [entry for entry in summary["arms"] if entry["against_early_stopping"] is not None]
    known.sort(key=lambda entry: -entry["beyond_early_stopping"]["mean"])
    intervals = [entry["beyond_early_stopping"] for entry in known]
    scale = axis([0.0, *_edges(intervals)], 0, 100)
    bars = []
    for entry, interval in zip(known, intervals):
        cell, against = Notes().cell(interval, signed=True), entry["against_early_stopping"]
        left, right = scale(interval["low"]), scale(interval["high"])
        better = f"{against['better']} of {against['seeds']} seed{'' if against['seeds'] == 1 else 's'}"
        look = arm_looks(summary)[entry["arm"]]
        bars.append(
            Bar(arm_name(entry), look, cell.mean, cell.span, better, left, right - left, scale(interval["mean"]))
        )
    return bars, scale(0.0)
