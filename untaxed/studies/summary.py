"""From a study's results to its summary: what to test, the numbers, and which weights stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import frontier
from ..errors import StoreError
from .results import Results, opened
from .store import Store, finite, read_json, write_json


def wanted_tests(store: Store) -> dict[str, list[str]]:
    """The points, by run, that validation chose and that are not measured on test yet."""
    results = Results(store)
    wanted: dict[str, list[str]] = {}
    for key, name in _chosen(results):
        if results.point(key, name)["test"] is None:
            wanted.setdefault(key, []).append(name)
    return wanted


def summary_of(directory: str | Path) -> dict[str, Any]:
    """The summary of a study: as it was written, or of what there is so far."""
    store = opened(directory)
    if store.summary.exists():
        return dict(read_json(store.summary))
    if not (store.initial / "result.json").exists():
        raise StoreError(f"{directory}: nothing has been measured yet; start the study again")
    return summarised(store)


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
    summary["failed"] = [{"run": run["key"], "seed": run["seed"], "why": run["why"]} for run in results.failed]
    return dict(finite(summary))


def chosen_points(store: Store) -> dict[str, set[str]]:
    """The points, by run, that validation chose."""
    chosen: dict[str, set[str]] = {}
    for key, name in _chosen(Results(store)):
        chosen.setdefault(key, set()).add(name)
    return chosen


def _chosen(results: Results) -> list[tuple[str, str]]:
    choices = frontier.choose(results.arms, results.facts)
    return [place for arm, setting in choices.to_test for place in results.places(arm, setting)]
