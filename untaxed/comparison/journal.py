"""A journal on disk: what every batch of an unfinished measurement gave, a line each.

    <directory>/scores/unfinished-<hash>.jsonl

A kill loses the batch that was being computed; a line that it cut is skipped. Numbers are written so that the same ones
are read. Once everything is measured the scores stand in files of their own and the journal is removed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..errors import StoreError
from ..measuring.journal import Journal
from ..studies.cache import content_key
from ..studies.store import disk_errors

T = TypeVar("T")


class KeptJournal(Journal):
    """The journal of one model.

    Args:
        directory: Where it lies.
        of: What everything in it was computed with: the content of the model and of the code.
    """

    def __init__(self, directory: Path, of: str) -> None:
        self.of = of
        self.file = directory / f"{content_key('unfinished', of)}.jsonl"
        self._known: dict[str, Any] | None = None

    def once(self, about: Callable[[], Any], compute: Callable[[], T]) -> T:
        """What `compute` returned the first time, in this process or in an earlier one."""
        key = content_key("batch", about())
        known = self._read()
        if key not in known:
            value = compute()
            known[key] = _plain(value)
            self._append({"batch": key, "gave": known[key]})
            return value
        found: T = _value(known[key])
        return found

    def remove(self) -> None:
        """Forgets everything."""
        with disk_errors(self.file):
            self.file.unlink(missing_ok=True)
        self._known = {}

    def _read(self) -> dict[str, Any]:
        if self._known is None:
            try:
                text = self.file.read_text(errors="replace") if self.file.exists() else ""
            except OSError as error:
                raise StoreError(f"{self.file}: cannot be read: {error.strerror or error}") from error
            lines = filter(None, map(_line, text.splitlines()))
            self._known = {line["batch"]: line["gave"] for line in lines}
        return self._known

    def _append(self, line: dict[str, Any]) -> None:
        with disk_errors(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open(self.file, "a", opener=_private) as out:
                out.write("\n" + json.dumps(line))  # behind whatever a kill has left of the last one


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # as the scores beside it


def _line(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and {"batch", "gave"} <= found.keys() else None


def _plain(value: Any) -> dict[str, Any]:
    if isinstance(value, torch.Tensor):
        return {"floats" if value.is_floating_point() else "whole": value.tolist()}
    return {"texts": list(value)}


def _value(plain: dict[str, Any]) -> Any:
    [(kind, values)] = plain.items()
    return values if kind == "texts" else torch.tensor(values, dtype=torch.float64 if kind == "floats" else torch.int64)
