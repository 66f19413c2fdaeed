"""Evaluations on disk, one JSON line each, so that nothing that was measured is measured again."""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from ..errors import StoreError, UsageError, short
from ._goals import Evaluation

VERSION = 1
Key = tuple[float, ...]


class Log:
    """What was evaluated, in memory and, where a file is given, in it.

    The first line names the problem, each other one is an evaluation, written and flushed to disk before the next
    starts. A line that a kill cut off is dropped when the file is opened again.
    """

    def __init__(self, file: FileIO | None, problem: Mapping[str, Any], path: Path | None = None) -> None:
        self.file, self.path = file, path
        self.found: dict[Key, Evaluation] = {}
        if file is not None:
            self._read(json.loads(json.dumps({"version": VERSION, "problem": problem})))

    def get(self, ratios: Mapping[str, float]) -> Evaluation | None:
        return self.found.get(tuple(ratios.values()))

    def add(self, evaluation: Evaluation) -> Evaluation:
        """Puts an evaluation to the others; returns it as it will be read: what is no plain value is its text."""
        line = {"ratios": evaluation.ratios, "values": plain(evaluation.values), "seconds": evaluation.seconds}
        text = json.dumps(line, allow_nan=False)
        if self.file is not None:
            self._write(text)
        read = Evaluation(**json.loads(text))
        self.found[tuple(read.ratios.values())] = read
        return read

    def _write(self, text: str) -> None:
        assert self.file is not None
        start = self.file.seek(0, os.SEEK_END)
        rest = memoryview(text.encode() + b"\n")
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
            os.fsync(self.file.fileno())
        except OSError as error:
            with suppress(OSError):  # where not even that can be done, the line is dropped at the next opening
                self.file.truncate(start)
            raise StoreError(f"{self.path} cannot be written: {error.strerror}") from None

    def _read(self, header: Mapping[str, Any]) -> None:
        assert self.file is not None
        self.file.seek(0)
        content = self.file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self.file.truncate(len(whole))
        lines = [self._line(number, line) for number, line in enumerate(whole.splitlines(), 1)]
        if not lines:
            return self._write(json.dumps(header))
        if lines[0] != header:
            raise StoreError(f"{self.path} is of another search ({_difference(lines[0], header)}); give another file")
        for number, line in enumerate(lines[1:], 2):
            try:
                evaluation = Evaluation(line["ratios"], line["values"], line["seconds"])
                self.found[tuple(map(float, evaluation.ratios.values()))] = evaluation
            except (KeyError, TypeError, ValueError, AttributeError):
                raise StoreError(f"{self.path}, line {number}, is no evaluation; remove it") from None
        return None

    def _line(self, number: int, line: bytes) -> Any:
        try:
            return json.loads(line)
        except ValueError:
            raise StoreError(f"{self.path}, line {number}, is damaged; remove it") from None


def check_plain(name: str, values: Mapping[str, Any]) -> None:
    """Raises `UsageError` unless values are as JSON has them, and so equal to themselves when they are read again."""
    for key, value in values.items():
        try:
            json.dumps({key: value}, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise UsageError(
                f"{name}[{key!r}] must be plain: finite numbers, texts, truth values, and lists and mappings of them; "
                f"got {short(value)}"
            ) from None


@contextmanager
def opened(path: str | Path | None, problem: Mapping[str, Any]) -> Iterator[Log]:
    """The log at a path, for this process alone; in memory where there is none."""
    if path is None:
        yield Log(None, problem)
        return
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):  # a device may have no end to read to
        raise StoreError(f"{path} cannot be opened: it is no file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b", buffering=0)  # noqa: SIM115 - a buffer would try a full disk again
    except OSError as error:
        raise StoreError(f"{path} cannot be opened: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreError(f"{path} is in use by another search; wait for it or give another file") from None
        yield Log(file, problem, path)


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON has them: what is not finite is null, and what is no number, text, list or mapping its text."""

    def made(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): made(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [made(inner) for inner in value]
        if hasattr(value, "tolist"):  # of numpy, of torch
            return made(value.tolist())
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else None
        return value if value is None or isinstance(value, str | int) else short(value, 200)

    return {str(key): made(value) for key, value in values.items()}


def _difference(found: Any, wanted: Mapping[str, Any]) -> str:
    """Which part of the problem differs."""
    inner, asked = (found.get("problem") if isinstance(found, dict) else None), wanted["problem"]
    if not isinstance(inner, dict):
        return "its first line names none"
    differing = [key for key in {**inner, **asked} if inner.get(key) != asked.get(key)]
    return f"it differs in {', '.join(differing)}" if differing else "another version"
