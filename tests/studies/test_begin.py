"""A study that comes to nothing leaves nothing, and nothing that was there before is removed."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
from pathlib import Path

import pytest

from untaxed.errors import DataError
from untaxed.studies.begin import _existing, _withdraw, begun
from untaxed.studies.store import Store, locked, write_json

STUDY = {
    "version": 1,
    "spec": {"name": "none", "seeds": [0]},
    "identity": {"models": {}, "data": {}},
    **{key: [] for key in ("measures", "select", "report", "arms")},
}


def fail(store: Store, *, shared: bool = False, measured: bool = False) -> None:
    with begun(store, STUDY, shared=shared):
        (store.initial).mkdir(exist_ok=True)
        (store.initial / "scores.npz").touch()
        if measured:
            write_json(store.initial / "result.json", {})
        raise DataError("the reward is nonsense")


def left(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("shared", [False, True])
def test_folders_that_were_made_go_again(shared: bool, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        fail(Store(tmp_path / "new" / "deep"), shared=shared)
    assert left(tmp_path) == set()


def test_an_empty_folder_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError):
        fail(Store(tmp_path / "out"))
    assert left(tmp_path) == {"out"}


def test_a_neighbour_made_in_the_meantime_stays(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "deep")
    store.directory.mkdir(parents=True)
    before = _existing(store) - {store.directory, store.directory.parent}
    (tmp_path / "new" / "notes.txt").touch()
    _withdraw(store, before)
    assert left(tmp_path) == {"new", "new/notes.txt"}


def test_a_study_that_was_there_or_has_something_done_stays(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        fail(Store(tmp_path), measured=True)
    (tmp_path / "initial" / "result.json").unlink()
    with pytest.raises(DataError):
        fail(Store(tmp_path))
    assert left(tmp_path) == {"study.json", ".lock", "initial", "initial/scores.npz"}


def _share(folder: Path, holds: multiprocessing.synchronize.Event, go: multiprocessing.synchronize.Event) -> None:
    with locked(folder / ".lock", what="study", shared=True):
        holds.set()
        go.wait(30)


def test_a_study_that_another_process_works_in_stays(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    holds, go = context.Event(), context.Event()
    other = context.Process(target=_share, args=(tmp_path, holds, go))
    other.start()
    assert holds.wait(30)
    with pytest.raises(DataError):
        fail(Store(tmp_path), shared=True)
    go.set()
    other.join()
    assert "study.json" in left(tmp_path)
