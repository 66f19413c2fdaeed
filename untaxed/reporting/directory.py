"""A study's directory as the report reads it: what was planned, what is there, what failed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import StoreError

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
        return list(
            dict.fromkeys(key for arm in self.study["arms"] for one in arm["settings"] for key in one["runs"].values())
        )

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
    directory = Path(directory)
    study = _read(directory / "study.json")
    if study is None:
        raise StoreError(f"{directory}: holds no study (no study.json); name the --out directory of `untaxed study`")
    keys = [path.parent.name for path in sorted(directory.glob("runs/*/result.json"))]
    runs = {key: run for key in keys if (run := _read(directory / "runs" / key / "result.json")) is not None}
    initial = _read(directory / "initial" / "result.json")
    places = {"initial": directory / "initial", **{key: directory / "runs" / key for key in runs}}
    texts = {key: _read(place / "texts.json") or {} for key, place in places.items()}
    point = initial["points"][0] if initial and initial["points"] else None
    return StudyFiles(study, _read(directory / "summary.json"), point, runs, texts)


def _read(path: Path) -> Json | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error})") from None
