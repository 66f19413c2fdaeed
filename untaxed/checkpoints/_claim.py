"""The place that a new checkpoint is going to take: whether it is free, and nobody else's."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from ..errors import StoreError

HIDDEN = ".partial"  # how the hidden directory ends that a new one is made in: .NAME.RANDOM.partial


def check_free(path: Path, parents: Iterable[Path]) -> None:
    """Refuses a place that is taken, or that lies where something is read from.

    Raises:
        StoreError: Something is there already, it lies in one of `parents`, or is no place of its own.
    """
    try:
        place = path.resolve()
    except (OSError, RuntimeError):  # up to Python 3.12 a loop is the latter
        raise StoreError(f"cannot write {path}: links lead in a circle there; give another directory") from None
    if path.name in ("", "..") or place == Path.cwd():
        raise StoreError(f"cannot write {path}: give the directory a name; the current one cannot be replaced")
    for parent in parents:
        if place == parent.resolve():
            raise StoreError(f"cannot write {path}: it is one of the models that are read; give another directory")
        if parent.resolve() in place.parents:
            raise StoreError(f"cannot write {path}: it lies in {parent}, which is read; give a directory outside")
    if os.path.lexists(path) and not (path.is_dir() and not path.is_symlink() and not any(path.iterdir())):
        raise StoreError(f"cannot write {path}: it exists already; give another directory, or remove it first")


def check_room(path: Path, nbytes: int) -> None:
    """Refuses what does not fit onto the disk.

    Raises:
        StoreError: Fewer bytes are free.
    """
    place = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < nbytes:
        raise StoreError(
            f"cannot write {path}: it needs {nbytes / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free; free some"
        )


def lock(directory: Path) -> int | None:
    """Holds a directory until the handle is closed, by whatever end of the process; None where somebody holds it.

    A file system that cannot lock gives a handle all the same.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:
        pass
    return handle


def remove_leftovers(path: Path, own: Path) -> None:
    """Removes the hidden directories that killed processes left when they were writing `path`.

    Args:
        path: The place that is going to be taken.
        own: Our own hidden directory, which stays.
    Raises:
        StoreError: One of them is held: somebody is writing there.
    """
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[^.]+{re.escape(HIDDEN)}")
    for other in path.parent.iterdir():
        if other == own or not pattern.fullmatch(other.name) or not other.is_dir():
            continue
        handle = lock(other)
        if handle is None:
            raise in_use(path)
        shutil.rmtree(other, ignore_errors=True)
        os.close(handle)


def in_use(path: Path) -> StoreError:
    """The error for a place that somebody else is writing."""
    return StoreError(f"cannot write {path}: another process is writing it; wait for it or give another place")
