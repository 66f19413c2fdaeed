"""The page of `untaxed measure`: models against the initial one, down to the items that were lost and won."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .measured import divergences, footnotes, lines, overview, remarks
from .numbers import Notes, Summary
from .page import FRONTIER_SIZES, template, write_whole
from .plots import arm_looks, frontier_plot

KINDS = {"lost": "lost: initial right, the model wrong", "won": "won: initial wrong, the model right"}


def html(summary: Summary) -> str:
    """The page as text; everything from models and items is escaped.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    notes = Notes()
    as_arms = _as_arms(summary)
    plots = {name: frontier_plot(as_arms, width=w, height=h) for name, (w, h) in FRONTIER_SIZES.items()}
    return template("measured.html").render(
        summary=summary,
        models=[(one, lines(summary, one, notes), remarks(summary, [one])) for one in summary["models"]],
        overview=overview(summary, notes) if len(summary["models"]) > 1 or plots["wide"] else [],
        divergences=divergences(summary).values(),
        styles=arm_looks(as_arms),
        frontier=plots if plots["wide"] else None,
        kinds=KINDS,
        notes=notes.reasons,
        footnotes=footnotes(summary),
    )


def write(directory: str | Path, summary: Summary) -> Path:
    """Writes the page to ``report.html`` in the directory, whole or not at all."""
    return write_whole(Path(directory) / "report.html", html(summary))


def _as_arms(summary: Summary) -> dict[str, Any]:
    """The models as a study's arms of one point each, for the plot of the frontier."""
    reward = next((n for n in ("gold", "proxy") if any(n in one["reward"] for one in summary["models"])), None)
    return {
        "reward": reward,
        "gain": {"mean": None},
        "initial": {"reward": {reward: _initial(summary, reward)} if reward else {}},
        "arms": [_arm(entry, reward) for entry in summary["models"]],
    }


def _initial(summary: Summary, reward: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = summary["models"][0]["reward"][reward]["initial"]
    return found


def _arm(entry: Mapping[str, Any], reward: str | None) -> dict[str, Any]:
    rewards = {reward: entry["reward"][reward]["value"]} if reward in entry["reward"] else {}
    return {
        "arm": entry["name"],
        "plain": False,
        "early_stopping": False,
        "shown": {"setting": "measured"},
        "points": [{"setting": "measured", "reward": rewards, "tax": entry["tax"]}],
    }
