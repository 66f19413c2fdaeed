"""Things that are made once and found again: a folder of entries named by the content of what made them.

Two processes that want the same entry do not make it twice: the second waits for the first. An entry appears by a
rename, so that one which was interrupted is never read.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..checkpoints import fingerprint
from ..errors import StoreError
from .store import disk_full

VERSION = 1  # of what the preparation steps do; raised when the same settings would make something else
log = logging.getLogger("untaxed.prepare")


@contextlib.contextmanager
def told(say: Callable[[str], object]) -> Iterator[None]:
    """Passes on what preparation says within the block, so that minutes of work are not silent."""
    handler = _Teller(say)
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


class _Teller(logging.Handler):
    def __init__(self, say: Callable[[str], object]) -> None:
        super().__init__(logging.INFO)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())


def default_cache() -> Path:
    """The folder ``$UNTAXED_CACHE``, or ``~/.cache/untaxed``."""
    return Path(os.environ.get("UNTAXED_CACHE") or Path.home() / ".cache" / "untaxed")


def content_key(kind: str, content: Any) -> str:
    """Names an entry by what it is made of: equal content, equal name."""
    text = json.dumps([VERSION, kind, content], sort_keys=True, default=str)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def cached(cache: Path, key: str, make: Callable[[Path], None], *, what: str) -> Path:
    """Returns the entry `key`, made by `make(path)` where it is not there yet.

    Args:
        cache: The folder of entries; created.
        key: From `content_key`.
        make: Writes a file or a folder at the path it is given. What it leaves there after an error is removed.
        what: The step in words, for the log.

    Raises:
        StoreError: The cache cannot be written to.
    """
    entry = cache / key
    with _locked(cache, key):
        if entry.exists():
            log.debug("%s: found in %s", what, entry)
            return entry
        log.info("%s: making it (kept in %s)", what, entry)
        started = time.perf_counter()
        _make(entry, make, what)
        log.info("%s: done in %.0f s", what, time.perf_counter() - started)
    return entry


def _make(entry: Path, make: Callable[[Path], None], what: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    try:
        make(folder / entry.name)
        (folder / entry.name).rename(entry)
    except Exception as error:
        if disk_full(error):
            raise StoreError(f"{what}: the disk of {entry.parent} is full; free space or set UNTAXED_CACHE") from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(cache: Path, key: str) -> Iterator[None]:
    """Holds the entry's lock, which the operating system drops when the process dies."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        handle = (cache / f".{key}.lock").open("w")
    except OSError as error:
        raise StoreError(f"cache {cache} cannot be written ({error.strerror}); set UNTAXED_CACHE") from None
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for stale in cache.glob(f".{key}-*"):  # of a process that was killed: nobody else holds the lock
            shutil.rmtree(stale, ignore_errors=True)
        yield


def file_digest(file: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(path: Path) -> str:
    """What a file, or the folder of a model, holds: equal for equal content, wherever it lies."""
    return fingerprint(path) if path.is_dir() else file_digest(path)
