"""The report as one HTML file: no scripts, no requests, everything from models and specs escaped."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import StoreError, require
from ..studies.endings import whose
from .axes import Look, looks
from .curves import alongside, curve, cycles, trained_points
from .directory import StudyFiles, read_study
from .drops import drops, drops_title
from .numbers import Summary
from .parts import part_panels, shares
from .plots import CurvePlot, arm_looks, curve_plot, difference_bars, frontier_plot, legend_places
from .samples import samples
from .tables import abilities_table, arm_name, arms_table, drift_tokens

FRONTIER_SIZES = {"wide": (660, 430), "narrow": (350, 340)}
GROUPS = {"reward": "Reward", "drift": "Drift from the initial model", "abilities": "Abilities"}
CHOICES = {
    "ship": "ships at",
    "last": "last step",
    "q0.5": "matched reward 0.5",
    "q0.8": "matched reward 0.8",
    "q0.95": "matched reward 0.95",
}
WORDS = {
    "Initial": "the model that alignment starts from.",
    "Arm": "one remedy, or several composed, with all its settings; plain is alignment without a remedy.",
    "Reward": "what alignment maximises; proxy where it is learned, gold where the truth is known.",
    "Kept": "an ability above chance, as a share of what initial had above chance on the same items.",
    "Tax": "1 minus the mean share kept over a group of abilities.",
    "Select, report": "choices look at the select abilities; report abilities are shown and never chosen on.",
    "Ships at": "the setting with the highest proxy reward on validation: what someone without ability data ships.",
    "Matched reward 0.95": "the least tax among settings with at least 0.95 of what plain gains where it ships.",
    "Early stopping": "plain's own checkpoints at matched reward. It costs nothing, so a remedy has to beat it.",
    "Beyond early stopping": "tax of early stopping minus tax of the arm at matched reward 0.95; above 0 is better.",
    "Reference": "a curve to compare with, no remedy: nothing is trained for it, and every text costs more to write.",
    "Recovered": "1 minus the arm's tax at matched reward 0.95 over plain's where it ships, on report abilities.",
    "Area": "share kept at a reward share or more, averaged over reward shares from 0 to 1; 1 is free alignment.",
    "Drift": "distance from initial without a task; forward KL in nats a token on texts of initial.",
    "Interval": "95 %: Student's t over seeds with the noise of test items added; Fieller's where it is of a ratio. "
    "Where trainings differ in a skewed way it holds the truth in about 92 of 100 studies.",
    "Fell, rose": "a loss or gain of an ability that stands after correction for the number of abilities of the arm.",
}


def html(directory: str | Path, summary: Summary | None = None) -> str:
    """The page of a study's directory, finished or not.

    Args:
        summary: Stands in for ``summary.json``, so that an unfinished study shows the numbers it has so far.
    Raises:
        StoreError: The directory holds no study.
        MissingExtra: jinja2 is not installed.
    """
    files = read_study(directory)
    if summary is not None:
        files = replace(files, summary=dict(summary))
    return template("report.html").render(**_content(files), **_of_summary(files))


def frontier_svg(summary: Summary) -> str | None:
    """The reward-tax frontier as a picture of its own, light or dark as the page around it; None without points.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    width, height = FRONTIER_SIZES["wide"]
    plot = frontier_plot(summary, width=width, height=height)
    legend, rows = legend_places(arm_looks(summary), width)
    return None if plot is None else template("frontier.svg").render(plot=plot, legend=legend, top=rows * 22 + 14)


def template(name: str) -> Any:
    """A template of ours, with everything escaped that it is given."""
    jinja = require("jinja2", extra="report")
    environment = jinja.Environment(
        loader=jinja.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja.StrictUndefined,
    )
    environment.globals["arm_name"] = arm_name
    return environment.get_template(name)


def write_html(directory: str | Path, file: str | Path | None = None, summary: Summary | None = None) -> Path:
    """Writes the page to `file`, or to ``report.html`` in the directory, whole or not at all."""
    target = Path(directory) / "report.html" if file is None else Path(file)
    return write_whole(target, html(directory, summary))


def write_whole(target: Path, page: str) -> Path:
    """Writes a page so that the old one or the new one is there, whole."""
    content = page.encode("utf-8", errors="replace")
    if target.is_dir():
        raise StoreError(f"{target} is a folder; name a file for the page")
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".report-", delete=False) as temporary:
            try:
                temporary.write(content)
                temporary.flush()
                os.fsync(temporary.fileno())
                os.chmod(temporary.name, 0o644)
                os.replace(temporary.name, target)
            except BaseException:
                os.unlink(temporary.name)
                raise
    except OSError as error:
        raise StoreError(f"the page {target} cannot be written: {error.strerror}") from error
    return target


def _content(files: StudyFiles) -> dict[str, Any]:
    """What does not need a summary."""
    spec = files.study.get("spec", {})
    done = [run for run in files.runs.values() if run["status"] == "done"]
    algorithm = spec.get("algorithm") or {}
    initial = (spec.get("models") or {}).get("initial")  # a recipe may stand here: the spec below shows it
    return {
        "name": spec.get("name", "study"),
        "algorithm": algorithm.get("name"),
        "initial_name": initial if isinstance(initial, str) else None,
        "seeds": spec.get("seeds", []),
        "started": files.study.get("started"),
        "versions": files.study.get("versions", {}),
        "host": files.study.get("host"),
        "git": files.study.get("git"),
        "spec": json.dumps(spec, indent=2, ensure_ascii=False),
        "done": len(done),
        "planned": len(files.planned),
        "missing": files.missing,
        "failed": [{**run, "whose": whose(run)} for run in files.failed],
        "words": WORDS,
        "choices": CHOICES,
        "shares": shares(files),
        **_curves(files),
    }


def _of_summary(files: StudyFiles) -> dict[str, Any]:
    """What a summary adds; all None where there is none."""
    summary = files.summary
    if summary is None:
        names = ("summary", "frontier", "bars", "arms", "tokens", "abilities", "samples", "styles", "tested")
        return dict.fromkeys(names)
    plots = {
        name: frontier_plot(summary, width=width, height=height) for name, (width, height) in FRONTIER_SIZES.items()
    }
    return {
        "summary": summary,
        "frontier": plots if plots["wide"] else None,
        "bars": difference_bars(summary),
        "arms": arms_table(summary),
        "tokens": drift_tokens(summary),
        "abilities": abilities_table(summary),
        "samples": samples(files, summary, _looked_at_first(summary)),
        "styles": arm_looks(summary),
        "tested": drops_title(summary) if drops(summary) else "",
    }


def _looked_at_first(summary: Summary) -> list[str]:
    """Plain, then the arm that does best against early stopping."""
    plain = [entry["arm"] for entry in summary["arms"] if entry["plain"]]
    known = [entry for entry in summary["arms"] if entry["beyond_early_stopping"]["mean"] is not None]
    best = sorted(known, key=lambda entry: -entry["beyond_early_stopping"]["mean"])
    return [*plain, *(entry["arm"] for entry in best)]


def _curves(files: StudyFiles) -> dict[str, Any]:
    """The curves by group of measures, each arm at the swept values that it is shown at, and which arms have any."""
    shown = {entry["arm"]: entry for entry in (files.summary or {}).get("arms", [])}
    arms = files.study["arms"]
    styles = looks((arm["arm"], arm["plain"], arm["early_stopping"]) for arm in arms)
    names = [arm["arm"] for arm in arms if not arm["early_stopping"]]
    runs = {name: trained_points(files, name, _shown_values(shown.get(name))) for name in names}
    measures = files.study.get("measures", [])
    groups: list[tuple[str, list[tuple[Mapping[str, Any], CurvePlot]]]] = []
    for group, title in GROUPS.items():
        panels = []
        for measure in measures:
            if measure["group"] == group:
                curves = {arm: curve(points, group, measure["name"], files.initial) for arm, points in runs.items()}
                plot = curve_plot(curves, styles, share=measure["unit"].startswith("share"))
                if plot:
                    panels.append((measure, plot))
        if panels:
            groups.append((title, panels))
    split = [(arm, _cycles(arm, measures, runs, styles, files)) for arm in runs]
    return {
        "curve_groups": groups,
        "with_curves": [arm for arm, points in runs.items() if points],
        "cycles": [(arm, panels) for arm, panels in split if panels],
        "parts": part_panels(files, styles),
    }


def _cycles(
    arm: str, measures: Sequence[Any], runs: Mapping[str, Any], styles: Mapping[str, Look], files: StudyFiles
) -> list[tuple[Any, CurvePlot]]:
    """Reward and drift of an arm that resets, each cycle from its own start, and plain over the same steps."""
    plain = next((one for one in files.study["arms"] if one["plain"]), None)
    panels = []
    for measure in measures:
        own = curve(runs[arm], measure["group"], measure["name"], files.initial)
        if not own.resets or measure["group"] == "abilities":
            continue
        parts = {f"{arm}\0{number}": part for number, part in enumerate(cycles(own), 1)}
        if plain is not None:
            other = curve(runs[plain["arm"]], measure["group"], measure["name"], files.initial)
            parts |= {f"{plain['arm']}\0{number}": part for number, part in enumerate(alongside(other, own), 1)}
        drawn = {key: styles[key.split("\0")[0]] for key in parts}
        numbers = {key: key.split("\0")[1] for key in parts if key.startswith(f"{arm}\0")}
        plot = curve_plot(parts, drawn, labels=numbers)
        if plot:
            panels.append((measure, plot))
    return panels


def _shown_values(entry: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if entry is None:
        return {}
    point = next((one for one in entry["points"] if one["setting"] == entry["shown"]["setting"]), None)
    return point["values"] if point else {}
