"""A run's measured points: the models it went through, what was measured on each, and their files.

progress.npz, progress.json   while the run goes on: the points so far
scores.npz, texts.json, result.json   when it is complete; the result last
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..measuring import Reading
from .shapes import ProgressFile, RunFile, TextsFile
from .store import checked, finite, made_again, read_json, read_scores, write_json, write_scores

TEXTS = 8  # sampled texts that are kept a point
Point = dict[str, Any]


def point_name(step: int, phase: str | None) -> str:
    """ "step-40", "step-60-before": the point's name in scores, texts and folders."""
    return f"step-{step}" + (f"-{phase}" if phase else "")


@dataclass
class Points:
    """The points of one run, in the order in which they were measured.

    Attributes:
        points: As `result.json` holds them.
        texts: Sampled texts by point.
        scores: ``"<point>/<split>/<group>.<measure>"`` -> (items, k).
        seconds: Wall time that went into them.
        outcome: What training cost, once it has ended.
        notes: Warnings that came up on the way.
    """

    points: list[Point] = field(default_factory=list)
    texts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    scores: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    seconds: float = 0.0
    outcome: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    def names(self) -> list[str]:
        return [point["name"] for point in self.points]

    def get(self, name: str) -> Point:
        return next(point for point in self.points if point["name"] == name)

    def put(self, point: Point, readings: Mapping[str, Reading]) -> None:
        """Adds a point, or more splits of one that is there, with what was measured on each split."""
        name = point["name"]
        stored = self._stored(point)
        for split, reading in readings.items():
            stored[split] = split_values(reading)
            stored |= {"why": reading.why} if reading.why else {}
            self.scores |= {f"{name}/{split}/{key}": scores for key, scores in reading.scores.items()}
            said = (f"{key}, {split}: {text}" for key, texts in reading.notes.items() for text in texts)
            self.notes += [note for note in dict.fromkeys(said) if note not in self.notes]  # once, not at every point
        if "validation" in readings:
            self.texts[name] = [dict(text) for text in readings["validation"].texts[:TEXTS]]
        self.points[self.names().index(name)] = stored

    def put_alike(self, point: Point, other: str, split: str) -> None:
        """Adds a point, or one more split of one that is there, which is the same model as another, measured point."""
        name, known = point["name"], f"{other}/{split}/"
        stored = self._stored(point) | {split: self.get(other)[split]}
        self.scores |= {f"{name}/{split}/{k[len(known) :]}": v for k, v in self.scores.items() if k.startswith(known)}
        if split == "validation":
            self.texts[name] = self.texts.get(other, [])
        self.points[self.names().index(name)] = stored

    def _stored(self, point: Point) -> Point:
        """The point as it stands, with what is given of it; it takes its place among the points."""
        if point["name"] not in self.names():
            self.points.append({"validation": None, "test": None, **point})
        return self.get(point["name"]) | {key: value for key, value in point.items() if value is not None}

    def drop_from(self, step: int, phase: str | None) -> None:
        """Drops what an interrupted run measured at this moment or later: it is about to be measured again."""
        gone = [p["name"] for p in self.points if p["step"] > step or (p["step"] == step and not _earlier(p, phase))]
        self.points = [point for point in self.points if point["name"] not in gone]
        self.texts = {name: texts for name, texts in self.texts.items() if name not in gone}
        self.scores = {key: scores for key, scores in self.scores.items() if key.split("/")[0] not in gone}

    def source(self, point: Point) -> Point:
        """The checkpoint whose weights a point has: itself, or the one that a variant is made of."""
        return point if point["variant"] is None else self.get(self.kept(point["variant"]["of"]))

    def take_over(self, earlier: Points) -> bool:
        """Takes variants and tests of an earlier training, where its checkpoints measured the same to the last bit."""
        before = {point["name"]: point["validation"] for point in earlier.points if point["variant"] is None}
        if before != {point["name"]: point["validation"] for point in self.points if point["variant"] is None}:
            return False
        weights = {point["name"]: point["weights"] for point in (*earlier.points, *self.points)}
        known = set(earlier.names())
        new = [point for point in self.points if point["name"] not in known]
        self.points = [*({**point, "weights": weights[point["name"]]} for point in earlier.points), *new]
        self.texts, self.scores = {**earlier.texts, **self.texts}, {**earlier.scores, **self.scores}
        return True

    def kept(self, kind: str) -> str:
        """The checkpoint that ``last`` or ``best_proxy`` (highest on validation, the first of equals) names."""
        trained = [point for point in self.points if point["variant"] is None]
        if kind == "last":
            return str(trained[-1]["name"])
        rewards = [point["validation"]["reward"].get("proxy") for point in trained]
        known = [-np.inf if reward is None else reward for reward in rewards]
        return str(trained[int(np.argmax(known))]["name"])

    # --- files -----------------------------------------------------------------------------------------------------

    def save_progress(self, directory: Path) -> None:
        """Keeps what there is of a run that goes on; scores first, since the JSON says which of them count."""
        write_scores(directory / "progress.npz", self.scores)
        content = {"points": self.points, "texts": self.texts, "seconds": self.seconds, "outcome": self.outcome}
        write_json(directory / "progress.json", {**content, "notes": self.notes})

    @classmethod
    def load_progress(cls, directory: Path) -> Points:
        """The points of an interrupted run; none where it measured nothing."""
        if not (directory / "progress.json").exists():
            return cls()
        content = read_json(directory / "progress.json", ProgressFile)
        scores = _named(read_scores(directory / "progress.npz"), content["points"])
        known = {key: content[key] for key in ("points", "texts", "seconds", "outcome")}
        return cls(scores=scores, notes=content.get("notes", []), **known)

    def save(self, directory: Path, about: Mapping[str, Any]) -> None:
        """Writes the files of a complete run; `about` is what its result says beside the points."""
        write_scores(directory / "scores.npz", self.scores)
        write_json(directory / "texts.json", self.texts)
        write_json(directory / "result.json", {**about, "notes": self.notes, "points": self.points})
        for name in ("progress.json", "progress.npz"):
            (directory / name).unlink(missing_ok=True)

    @classmethod
    def load(cls, directory: Path) -> Points:
        """The points of a complete run."""
        result = read_json(directory / "result.json", RunFile)
        scores = _named(read_scores(directory / "scores.npz"), result["points"])
        outcome = {key: result[key] for key in ("train_seconds", "peak_bytes")}
        about = {"seconds": result["seconds"] or 0.0, "outcome": outcome, "notes": result.get("notes", [])}
        return cls(result["points"], read_texts(directory), scores, **about)


def read_texts(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """The sampled texts of a complete run by point; none where they were not kept."""
    path = directory / "texts.json"
    if not path.exists():
        return {}
    texts = read_json(path)
    return dict(checked({"texts": texts}, path, TextsFile, made_again(path))["texts"])


def split_values(reading: Reading) -> dict[str, dict[str, float | None]]:
    """One split of a point: the measured numbers, null where undefined; `gold` is always named."""
    values = finite(reading.values)
    return {**values, "reward": {"gold": None, **values["reward"]}}


def _earlier(point: Point, phase: str | None) -> bool:
    return point["phase"] == "before" and phase == "after"


def _named(scores: Mapping[str, NDArray[np.float64]], points: list[Point]) -> dict[str, NDArray[np.float64]]:
    """Only the scores of points that count: a kill may have come between scores and points."""
    names = {point["name"] for point in points}
    return {key: value for key, value in scores.items() if key.split("/")[0] in names}
