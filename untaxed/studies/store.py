"""A study's directory: where its files lie, and how they are written so that no half-written file is ever read.

Every file appears by a rename of a complete one (temporary file, fsync, rename, fsync of the folder). Scores are
written before the result that speaks of them, so that what a result names is there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import math
import os
import shutil
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..checkpoints import recover
from ..errors import StoreError
from .shapes import InitialFile, RunFile, Shape, StudyFile, SummaryFile, misfit

VERSION = 1
WRITING = threading.RLock()  # held during every write: a worker that is told to stop ends between two
FULL = (errno.ENOSPC, errno.EDQUOT)
Result = dict[str, Any]


@dataclass(frozen=True)
class Store:
    """The files of one study. A run is complete when its result exists."""

    directory: Path

    @property
    def study(self) -> Path:
        return self.directory / "study.json"

    @property
    def summary(self) -> Path:
        return self.directory / "summary.json"

    @property
    def initial(self) -> Path:
        return self.directory / "initial"

    def run(self, key: str) -> Path:
        return self.directory / "runs" / key

    @property
    def lock(self) -> Path:
        return self.directory / ".lock"

    def result(self, key: str) -> Result | None:
        """A run's result; None while it is not complete."""
        path = self.run(key) / "result.json"
        if not path.exists():
            return None
        found = read_json(path, RunFile)
        if found["key"] != key:
            raise StoreError(f"{path}: is the result of run {found['key']}, not of this one; {made_again(path)}")
        return dict(found)

    def initial_result(self) -> Result | None:
        """The initial model's result; None while it is not measured."""
        path = self.initial / "result.json"
        return read_json(path, InitialFile) if path.exists() else None

    def about(self) -> Result:
        """What ``study.json`` says."""
        remedy = "put a copy of it back, or name another directory with --out"
        found = read_json(self.study, remedy=remedy)
        if isinstance(found, dict) and (version := found.get("version", VERSION)) != VERSION:
            what = f"{version!r} (a {type(version).__name__})" if str(version) == str(VERSION) else str(version)
            raise StoreError(f"{self.study}: is of version {what}, this is {VERSION}; use another directory")
        return checked(found, self.study, StudyFile, remedy)

    def read_summary(self) -> Result:
        """What ``summary.json`` says."""
        return read_json(self.summary, SummaryFile, remedy="remove it, it is made again from the results")

    def create(self) -> None:
        """Makes the directory, or takes one that is empty or holds a study.

        Raises:
            StoreError: It holds something else, or cannot be written.
        """
        check_directory(self.directory)
        with disk_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.directory, prefix=".tmp-"):
                pass  # a folder may exist and still not be writable


def check_directory(directory: Path) -> None:
    """Raises a `StoreError` unless `directory` is absent, empty or a study's."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise StoreError(f"{directory}: is a file; name a directory with --out")
    with disk_errors(directory):
        names = [path.name for path in directory.iterdir() if not path.name.startswith((".tmp-", ".lock"))]
    if names and "study.json" not in names:
        raise StoreError(f"{directory}: is not empty and holds no study; name another directory with --out")


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns what the disk refuses into one line."""
    try:
        yield
    except OSError as error:
        raise refused(error, path) from error


def refused(error: OSError, path: Path) -> StoreError:
    """What a user is told when the disk refuses."""
    return no_room(path) if error.errno in FULL else StoreError(f"{path}: cannot be written: {error.strerror or error}")


def no_room(path: Path) -> StoreError:
    """What a user is told when the disk is full."""
    return StoreError(
        f"no space left on the disk while writing {path}; nothing that was finished is lost:"
        " make room and give the same command again"
    )


def disk_full(error: BaseException | None) -> bool:
    """True when an error, or one that it came from, says that the disk is full."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno in FULL) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that at every moment either the old or the new one is there, whole."""
    with WRITING, disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Makes a rename in `directory` survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON without NaN or Infinity, which JSON does not have: they become null."""
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False, indent=1)
    write_atomic(path, text.encode() + b"\n")


def finite(value: Any) -> Any:
    """The value with null in place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, shape: type[Shape] | None = None, *, remedy: str = "") -> Any:
    """Reads a JSON file; a `StoreError` names one that is missing, broken or of another shape, and the way out.

    Args:
        path: The file.
        shape: What it must hold; None: anything.
        remedy: The way out; empty: the folder that it lies in is made again when it is gone.
    """
    remedy = remedy or made_again(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file; {remedy}") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read as JSON ({error}); {remedy}") from None
    return found if shape is None else checked(found, path, shape, remedy)


def checked(value: Any, path: Path, shape: type[Shape], remedy: str) -> Any:
    """The value, where it is of that shape."""
    if (wrong := misfit(shape, value)) is not None:
        raise StoreError(f"{path}: is not what a study writes there ({wrong}); {remedy}")
    return value


def made_again(path: Path) -> str:
    """The way out for a file of one run, or of the initial model: what else lies there belongs to it."""
    return f"remove {path.parent}, the study makes it again"


def write_scores(path: Path, scores: Mapping[str, NDArray[np.float64]]) -> None:
    """Writes per-item scores, ``"<point>/<split>/<group>.<measure>"`` -> (items, k), as npz."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{key: np.asarray(value) for key, value in scores.items()})
    write_atomic(path, buffer.getvalue())


def read_scores(path: Path, *, remedy: str = "") -> dict[str, NDArray[np.float64]]:
    """Reads per-item scores; nothing in the file is ever executed. `remedy` is as `read_json` takes it."""
    remedy = remedy or made_again(path)
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            found = {key: file[key] for key in file.files}
    except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise StoreError(f"{path}: cannot be read as scores ({type(error).__name__}); {remedy}") from None
    for key, value in found.items():
        if value.ndim != 2 or value.dtype.kind not in "fiub":
            what = f"{key} is {value.dtype} of shape {value.shape}, expected numbers a row an item"
            raise StoreError(f"{path}: cannot be read as scores ({what}); {remedy}")
    return found


@contextlib.contextmanager
def locked(path: Path, *, what: str, shared: bool = False, patience_s: float = 10.0) -> Iterator[BinaryIO]:
    """Holds a lock file, which the operating system frees when its holder dies; gives the open file.

    Args:
        path: The lock file; made where it is missing, and left in place.
        what: What is locked, for the error: "study out/demo".
        shared: Whether others that share it may hold it too.
        patience_s: How long to wait for a holder that is about to end.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
    with file:
        until = time.monotonic() + patience_s
        while not _try_lock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            if time.monotonic() > until:
                file.seek(0)
                holder = file.read().decode(errors="replace").strip() or "?"
                raise StoreError(f"{what} is in use by process {holder}; wait for it or stop it")
            time.sleep(0.05)
        with contextlib.suppress(OSError):  # a full disk: it is held all the same
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        yield file


def alone(lock: BinaryIO) -> bool:
    """True when nobody shares a lock that is held; from then on nobody can."""
    return _try_lock(lock, fcntl.LOCK_EX)


def _try_lock(file: Any, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove(path: Path) -> None:
    """Removes a folder that is no longer needed; a half-removed one is out of the way first."""
    if path.exists():
        grave = Path(tempfile.mkdtemp(dir=path.parent, prefix=".tmp-"))
        path.rename(grave / path.name)
        shutil.rmtree(grave, ignore_errors=True)


def clean(directory: Path) -> None:
    """Removes what a kill left half-written below `directory`, and puts back what it left half-replaced."""
    recover(directory)
    for path in [*directory.rglob(".tmp-*"), *directory.rglob(".*.partial")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
