"""From a study's results to its summary: what to test, the numbers, and which weights stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import frontier
from .endings import lacking_in_words
from .events import counted
from .record import put_aside_in_words
from .results import Results, opened
from .store import Store, finite, write_json


def wanted_tests(store: Store) -> dict[str, list[str]]:
    """The points, by run, that validation chose and that are not measured on test yet."""
    results = Results(store)
    wanted: dict[str, list[str]] = {}
    for key, name in _untested(results, frontier.choose(results.arms, results.facts)):
        wanted.setdefault(key, []).append(name)
    return wanted


def summary_of(directory: str | Path) -> dict[str, Any]:
    """The summary of a study: as it was written, or of what there is so far."""
    store = opened(directory)
    store.about()  # a summary without its study is not shown
    return store.read_summary() if store.summary.exists() else summarised(store)


def write_summary(store: Store) -> dict[str, Any]:
    """Reads the frontier off the results and writes ``summary.json``."""
    summary = summarised(store)
    write_json(store.summary, summary)
    return summary


def summarised(store: Store) -> dict[str, Any]:
    """Reads the frontier off the results."""
    results = Results(store)
    choices = frontier.choose(results.arms, results.facts)
    summary = {"name": results.about["spec"]["name"], **frontier.summarise(results.arms, results.facts, choices)}
    summary["failed"] = _failed(results)
    summary["caveats"] += _beside(results)
    summary["unfinished"] = _unfinished(results, choices)
    if summary["unfinished"] is not None:
        summary["verdict"] = frontier.so_far(summary["verdict"])
    return dict(finite(summary))


def _failed(results: Results) -> list[dict[str, Any]]:
    """The runs that failed, and those that only lack variants, with the reason."""
    whole = [{"run": run["key"], **_whose(run), "why": run["why"], "lacking": []} for run in results.failed]
    parts = []
    for run in results.lacking:
        names = [one["name"] for one in run["lacking"]]
        parts.append({**run, "why": lacking_in_words(run["lacking"]), "lacking": names})
    return [*whole, *parts]


def _whose(run: Mapping[str, Any]) -> dict[str, Any]:
    """The seed of the spec that a run belongs to, and which member of its run it is."""
    member = run.get("member")
    return {"seed": run["seed"] if member is None else member["seed"], "member": member}


def _costs(results: Results) -> list[str]:
    """What arms of several trainings cost beside one of them."""
    return [
        f"{arm.name} trains {arm.members} runs for every seed: its cost is {arm.members} times that of one run."
        for arm in results.arms
        if arm.members > 1
    ]


def _beside(results: Results) -> list[str]:
    """What came up on the way, once each, and what is on disk and not in these numbers."""
    notes = Counter(text for run in results.complete for text in run.get("notes", []))
    of = counted(len(results.complete), "run")
    aside = results.about.get("aside", [])
    lacking = [f"Run {run['run']}, seed {run['seed']}: {run['why']}." for run in _failed(results) if run["lacking"]]
    left = [f"Not in these numbers: {put_aside_in_words(results.about, aside)}."] if aside else []
    return [
        *(f"Warning in {count} of {of}: {text}." for text, count in notes.items()),
        *lacking,
        *left,
        *_costs(results),
    ]


def _unfinished(results: Results, choices: frontier.Choices) -> str | None:
    """What is left to do, in words; None where nothing is."""
    complete, planned = len(results.complete), len(results.planned)
    if complete < planned:
        return f"{complete} of {counted(planned, 'run')} done"
    if waiting := {*results.unmeasured, *(run["run"] for run in results.lacking)}:
        return f"variants of {counted(len(waiting), 'run')} have yet to be measured"
    if _untested(results, choices):
        return "what validation chose has yet to be measured on test"
    return None


def chosen_points(store: Store) -> dict[str, set[str]]:
    """The points, by run, that validation chose."""
    chosen: dict[str, set[str]] = {}
    results = Results(store)
    for key, name in _chosen(results, frontier.choose(results.arms, results.facts)):
        chosen.setdefault(key, set()).add(name)
    return chosen


def _untested(results: Results, choices: frontier.Choices) -> list[tuple[str, str]]:
    return [(key, name) for key, name in _chosen(results, choices) if results.point(key, name)["test"] is None]


def _chosen(results: Results, choices: frontier.Choices) -> list[tuple[str, str]]:
    return [place for arm, setting in choices.to_test for place in results.places(arm, setting)]
