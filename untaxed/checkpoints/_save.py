"""Saving a model so that nobody ever sees half of it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import StoreError
from ._bars import no_bars
from ._claim import HIDDEN, in_use, lock, remove_leftovers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


OLD = ".old"  # what a replaced directory is called until the new one is in its place


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    """Writes a model and its tokenizer as one directory that appears whole or not at all.

    Args:
        model: Saved as safetensors in its own dtype.
        tokenizer: Saved beside it.
        path: The directory to appear; one that is there already is replaced.
    Raises:
        StoreError: The disk is full or the place cannot be written; nothing is left behind.
    """
    with no_bars(), appearing(Path(path)) as directory:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


@contextmanager
def appearing(path: Path, *, alone: bool = False) -> Iterator[Path]:
    """Lends a hidden directory beside `path` and, when the block ends well, renames it to `path`.

    Files and directories are flushed to the disk before the rename, so that a crash leaves the old state or the new.

    Args:
        path: The directory to appear.
        alone: Whether `path` is ours alone: nothing is replaced, another process that makes the same directory is an
            error, and what a killed one left is removed first. Otherwise what is there is replaced.
    Raises:
        StoreError: The disk is full, the place cannot be written, or (`alone`) is somebody else's.
    """
    with _as_store_error(path):
        made = [parent for parent in path.parents if not parent.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=HIDDEN, dir=path.parent))
        handle = lock(hidden)  # so that others see whether it is written to or left over
    try:
        with _as_store_error(path):
            if alone and handle is None:  # another process takes it for left over
                raise in_use(path)
            if alone:
                remove_leftovers(path, hidden)
            yield hidden
            hidden.chmod(0o755)  # mkdtemp's own mode would keep other users out
            flush(hidden)
            if alone:
                _place(hidden, path)
            else:
                _replace(hidden, path)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        if handle is not None:
            os.close(handle)
        with suppress(OSError):  # one that holds something stays
            for parent in made:
                parent.rmdir()


def flush(directory: Path) -> None:
    """Flushes every file of a directory, then the directory itself, to the disk."""
    for place in (*sorted(directory.rglob("*")), directory):
        _fsync(place)


def _replace(new: Path, path: Path) -> None:
    old = None
    if path.exists():  # a directory cannot be renamed onto a full one
        old = new.with_suffix(OLD)
        path.rename(old)
    _place(new, path)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _place(new: Path, path: Path) -> None:
    """Renames a directory to a place that is free, or an empty directory, and flushes the rename."""
    new.rename(path)
    _fsync(path.parent)


def _fsync(place: Path) -> None:
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def recover(directory: Path) -> None:
    """Ends what a kill left half-replaced below `directory`: the old state comes back unless the new one is there.

    Nobody else may be saving there.
    """
    for old in directory.rglob(f".*{OLD}"):
        path = old.with_name(old.name[1:].rsplit(".", 2)[0])  # .NAME.RANDOM.old
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(path)


@contextmanager
def _as_store_error(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if (clear := _translated(path, error)) is not None:
            raise clear from error
        raise


def _translated(path: Path, error: Exception) -> StoreError | None:
    if disk_is_full(error):
        return no_space(path)
    if isinstance(error, OSError):
        return StoreError(f"cannot write {path}: {error.strerror or error}")
    return None


def disk_is_full(error: BaseException) -> bool:
    """True when an error means a full disk: the system's, or what safetensors and torch.save make of it."""
    texts = ("No space left on device", "inline_container.cc")
    return getattr(error, "errno", None) == errno.ENOSPC or any(text in str(error) for text in texts)


def no_space(path: Path) -> StoreError:
    """The error for it."""
    return StoreError(f"cannot write {path}: no space left on the device; free some and run the same command again")
