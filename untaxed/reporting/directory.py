"""A study's directory as the report reads it: what was planned, what is there, what failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..studies.points import read_texts
from ..studies.results import opened, planned_keys

Json = dict[str, Any]


@dataclass(frozen=True)
class StudyFiles:
    """The files of a study, finished or not.

    Attributes:
        study: `study.json`.
        summary: `summary.json`; None while there is none.
        initial: The point of the initial model; None while it is not measured.
        runs: Complete runs by key, failed ones among them.
        texts: Sampled texts: ``texts[key][point]``, the initial model's under the key ``initial``.
    """

    study: Json
    summary: Json | None
    initial: Json | None
    runs: Mapping[str, Json]
    texts: Mapping[str, Json]

    @property
    def planned(self) -> list[str]:
        """The keys of all runs that the arms ask for, once each."""
        return planned_keys(self.study)

    @property
    def failed(self) -> list[Json]:
        """The runs that stopped, with their reasons."""
        return [run for run in self.runs.values() if run["status"] == "failed"]

    @property
    def missing(self) -> list[str]:
        """The keys of runs that are not complete."""
        return [key for key in self.planned if key not in self.runs]

    def setting(self, arm: str, values: Mapping[str, Any]) -> Json | None:
        """The choice of swept values of an arm that agrees with `values`, or its first where none does."""
        settings: list[Json] = next((one["settings"] for one in self.study["arms"] if one["arm"] == arm), [])
        agree = (one for one in settings if all(values.get(key) == value for key, value in one["values"].items()))
        return next(agree, settings[0] if settings else None)


def read_study(directory: str | Path) -> StudyFiles:
    """Reads the directory of a study.

    Raises:
        StoreError: There is no study, or one of its files cannot be read.
    """
    store = opened(directory)
    study, initial = store.about(), store.initial_result()
    runs = {key: run for key in planned_keys(study) if (run := store.result(key)) is not None}
    places = {"initial": store.initial, **{key: store.run(key) for key in runs}}
    texts = {key: read_texts(place) for key, place in places.items() if (place / "texts.json").exists()}
    summary = store.read_summary() if store.summary.exists() else None
    return StudyFiles(study, summary, initial["points"][0] if initial else None, runs, texts)
