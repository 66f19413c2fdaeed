"""From a study's results to its summary: what to test, the numbers, and which weights stay."""

from __future__ import annotations

from typing import Any

from .. import frontier
from .results import Results
from .store import Store, write_json


def wanted_tests(store: Store) -> dict[str, list[str]]:
    """The points, by run, that validation chose and that are not measured on test yet."""
    results = Results(store)
    wanted: dict[str, list[str]] = {}
    for key, name in _chosen(results):
        if results.point(key, name)["test"] is None:
            wanted.setdefault(key, []).append(name)
    return wanted


def write_summary(store: Store) -> dict[str, Any]:
    """Reads the frontier off the results and writes ``summary.json``."""
    results = Results(store)
    choices = frontier.choose(results.arms, results.facts)
    summary = {"name": results.about["spec"]["name"], **frontier.summarise(results.arms, results.facts, choices)}
    summary["failed"] = [{"run": run["key"], "seed": run["seed"], "why": run["why"]} for run in results.failed]
    write_json(store.summary, summary)
    return summary


def chosen_points(store: Store) -> dict[str, set[str]]:
    """The points, by run, that validation chose."""
    chosen: dict[str, set[str]] = {}
    for key, name in _chosen(Results(store)):
        chosen.setdefault(key, set()).add(name)
    return chosen


def _chosen(results: Results) -> list[tuple[str, str]]:
    choices = frontier.choose(results.arms, results.facts)
    return [place for arm, setting in choices.to_test for place in results.places(arm, setting)]
