"""How a study begins in its directory, and how it is taken back when it comes to nothing."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .record import record
from .store import Store, alone, clean, locked


@contextlib.contextmanager
def begun(store: Store, content: Mapping[str, Any], *, shared: bool = False) -> Iterator[None]:
    """Holds a study's directory while the block works in it, and says there what the study is.

    Where the block fails before the initial model is measured, what was made here is removed again: a study that was
    not there before is not there after.

    Args:
        store: The directory.
        content: For ``study.json``, see `record.describe`.
        shared: Whether others may work in it at the same time.
    """
    before = _existing(store)
    store.create()
    with locked(store.lock, what=f"study {store.directory}", shared=shared) as lock:
        before |= _existing(store) & {store.study}  # another's, begun in the meantime
        if not shared:  # else runs done by hand may be writing now; each cleans up after itself
            clean(store.directory)
        try:
            record(store, content)
            yield
        except Exception:
            nothing_done = not (store.initial / "result.json").exists()
            if store.study not in before and nothing_done and alone(lock):
                _withdraw(store, before)
            raise


def _existing(store: Store) -> frozenset[Path]:
    """What is there of the files and folders that beginning a study makes."""
    paths = (store.study, store.initial, store.lock, store.directory, *store.directory.parents)
    return frozenset(path for path in paths if path.exists())


def _withdraw(store: Store, before: frozenset[Path]) -> None:
    for path in {store.study, store.lock} - before:
        path.unlink(missing_ok=True)
    if store.initial not in before:
        shutil.rmtree(store.initial, ignore_errors=True)
    with contextlib.suppress(OSError):  # a folder that holds something stays, and so do those above it
        for folder in (store.directory, *store.directory.parents):
            if folder not in before:
                folder.rmdir()
