"""Per-item scores that are measured once: found again by what they depend on.

    <directory>/scores/scores-<hash>.npz    "validation", "test" -> (items, k), of one measure on one model
    <directory>/scores/scores-<hash>.json   what it is of, and what was left out or had no answer, by split
    <directory>/scores/items-<hash>.json    items that were lost and won, with both answers

The hash is that of the model's files, of the initial model's where the measure looks at it, of the code that scores,
and of the measure's own content: items, settings, and for what is sampled prompts and sampling. Moving or renaming a
model changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .. import measuring
from ..measuring.suite import Measure, Scores
from ..studies.cache import content_key
from ..studies.store import read_json, read_scores, write_json, write_scores

Splits = dict[str, Scores]


@dataclass(frozen=True)
class Found:
    """One measure on one model, by split.

    Attributes:
        scores: (items, k).
        notes: What was left out or scored 0 for want of an answer; splits without a note are missing.
    """

    scores: Splits
    notes: Mapping[str, Sequence[str]]


@cache
def code() -> str:
    """A hash of the code that scores: what another version of it wrote may mean something else."""
    digest = hashlib.sha256()
    for file in sorted(Path(measuring.__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def folder(directory: Path) -> Path:
    """Where scores lie."""
    return directory / "scores"


class Kept:
    """The scores of one model."""

    def __init__(self, directory: Path, *, model: str, initial: str, contents: Mapping[str, str]) -> None:
        self._directory = folder(directory)
        self._model, self._initial, self._contents = model, initial, contents

    def scores(self, one: Measure, compute: Callable[[], Found]) -> Found:
        """What a measure found: kept, or computed and written down."""
        if (known := self.known(one)) is not None:
            return known
        about = self._about(one)
        file, found = self._file(about), compute()
        write_json(file.with_suffix(".json"), {**about, "notes": found.notes})
        write_scores(file, found.scores)  # last: where it lies, all does
        return Found(read_scores(file), found.notes)

    def known(self, one: Measure) -> Found | None:
        """What a measure found before, else None."""
        file = self._file(self._about(one))
        beside = file.with_suffix(".json")
        if not (file.exists() and beside.exists()):
            return None
        notes = read_json(beside, remedy=_removed(beside)).get("notes", {})
        return Found(read_scores(file, remedy=_removed(file)), notes)

    def items(self, one: Measure, splits: Sequence[str], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The items of a measure that are shown: found, or computed and written down."""
        about = {**self._about(one, both=True), "splits": list(splits)}
        file = self._directory / f"{content_key('items', about)}.json"
        if not file.exists():
            write_json(file, compute())
        found: dict[str, Any] = read_json(file, remedy=_removed(file))
        return found

    def _file(self, about: Mapping[str, Any]) -> Path:
        return self._directory / f"{content_key('scores', about)}.npz"

    def _about(self, one: Measure, *, both: bool = False) -> dict[str, Any]:
        both = both or one.against is not None
        depends = {"model": self._model, "measure": one.key, "content": self._contents[one.key], "code": code()}
        return {**depends, "initial": self._initial} if both else depends


def _removed(file: Path) -> str:
    return f"remove {file}: what it held is measured again"
