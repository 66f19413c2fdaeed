"""A few sampled texts, before and after: the same prompts to the initial model and to every arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .directory import StudyFiles
from .numbers import Summary, plain_number

PROMPTS = 3


@dataclass(frozen=True)
class Sample:
    """One completion with its rewards as text; `arm` is empty for the initial model."""

    arm: str
    completion: str
    rewards: str


@dataclass(frozen=True)
class Samples:
    """One prompt and what the models made of it; the first of `arms` are the ones to look at."""

    prompt: str
    initial: Sample
    arms: list[Sample]


def samples(files: StudyFiles, summary: Summary, first: list[str]) -> list[Samples]:
    """The first prompts with the texts of every arm at the setting it is shown at, at its first seed.

    Args:
        first: Names of the arms that come first, in this order.
    """
    before = files.texts.get("initial", {}).get("initial", [])
    after = {entry["arm"]: _texts(files, summary, entry) for entry in summary["arms"]}
    order = sorted(after, key=lambda arm: first.index(arm) if arm in first else len(first))
    found = []
    for index, text in enumerate(before[:PROMPTS]):
        arms = [_sample(arm, after[arm][index]) for arm in order if index < len(after[arm])]
        found.append(Samples(text["prompt"], _sample("", text), arms))
    return found


def _texts(files: StudyFiles, summary: Summary, entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    point = next((one for one in entry["points"] if one["setting"] == entry["shown"]["setting"]), None)
    owner = (
        next((one["arm"] for one in summary["arms"] if one["plain"]), "") if entry["early_stopping"] else entry["arm"]
    )
    setting = files.setting(owner, point["values"]) if point else None
    if point is None or setting is None:
        return []
    seed, name = next(iter(point["names"].items()), ("", ""))
    return files.texts.get(setting["runs"].get(seed, ""), {}).get(name, [])


def _sample(arm: str, text: Mapping[str, Any]) -> Sample:
    known = [(name, text.get(name)) for name in ("gold", "proxy")]
    rewards = ", ".join(f"{name} {plain_number(value)}" for name, value in known if value is not None)
    return Sample(arm, text["completion"], rewards)
