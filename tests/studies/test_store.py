"""The store: what is written is whole or not there, what is read is never executed, and one study owns a directory."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from untaxed.errors import StoreError
from untaxed.studies import store as stores
from untaxed.studies.store import (
    Store,
    check_directory,
    clean,
    locked,
    read_json,
    read_scores,
    write_json,
    write_scores,
)


def test_json_has_no_nan_and_no_infinity(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": [float("inf"), 1.5], "z": {"w": -float("inf")}})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"x": None, "y": [None, 1.5], "z": {"w": None}}
    assert "NaN" not in text
    assert "Infinity" not in text


def test_scores_read_back_to_the_bit(tmp_path: Path) -> None:
    scores = {"step-2/validation/abilities.facts": np.random.default_rng(0).normal(size=(7, 2))}
    write_scores(tmp_path / "scores.npz", scores)
    [(key, value)] = read_scores(tmp_path / "scores.npz").items()
    assert key == "step-2/validation/abilities.facts"
    np.testing.assert_array_equal(value, scores[key])


def test_a_pickle_in_scores_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, ("true",)

    np.savez(tmp_path / "object.npz", a=np.array([Evil()], dtype=object), allow_pickle=True)
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(Evil()))
    for name in ("object.npz", "bare.npz"):
        with pytest.raises(StoreError, match="cannot be read as scores"):
            read_scores(tmp_path / name)


def test_a_broken_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"half": ')
    with pytest.raises(StoreError, match=r"result\.json: cannot be read as JSON"):
        read_json(tmp_path / "result.json")


class _FullDisk:
    """A file whose disk is full after some bytes."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> _FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> int:
        self._file.write(data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"old": True})
    fdopen = os.fdopen
    monkeypatch.setattr(stores.os, "fdopen", lambda *args: _FullDisk(fdopen(*args)))
    with pytest.raises(StoreError, match=r"no space left on the disk while writing .*result\.json.*make room"):
        write_json(path, {"new": list(range(100))})
    assert read_json(path) == {"old": True}
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        write_json(tmp_path / "small.json", {"fits": True})
        with pytest.raises(StoreError, match="no space left on the disk"):
            write_scores(tmp_path / "scores.npz", {"a": np.random.default_rng(0).normal(size=(20_000, 1))})
        assert os.listdir(tmp_path) == ["small.json"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_lock_is_held_on_a_disk_without_any_room(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "filler").write_bytes(bytes(20_000))
        with (
            locked(tmp_path / ".lock", what="study here"),
            pytest.raises(StoreError, match=r"study here is in use by process \?"),
        ):
            try_lock(tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "weights" / ".step-2.x.partial").mkdir(parents=True)
    (tmp_path / ".tmp-abc").write_text("half")
    (tmp_path / "weights" / "step-2").mkdir()
    clean(tmp_path)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["weights", "step-2"]


# --- directories ---------------------------------------------------------------------------------------------------


def test_a_directory_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match="is not empty and holds no study; name another directory"):
        Store(tmp_path).create()
    with pytest.raises(StoreError, match="is a file; name a directory"):
        check_directory(tmp_path / "thesis.tex")
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_directory_that_is_empty_absent_or_a_studys_is_taken(tmp_path: Path) -> None:
    Store(tmp_path / "new" / "deep").create()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "study.json").write_text("{}")
    Store(tmp_path / "old").create()
    assert os.listdir(tmp_path / "new" / "deep") == []


def test_a_directory_that_cannot_be_written_is_named() -> None:
    with pytest.raises(StoreError, match="/proc/untaxed: cannot be written"):
        Store(Path("/proc/untaxed")).create()


def try_lock(folder: Path) -> None:
    with locked(folder / ".lock", what="study here", patience_s=0.1):
        pass


def test_one_study_owns_a_directory(tmp_path: Path) -> None:
    in_use = f"study here is in use by process {os.getpid()}"
    with locked(tmp_path / ".lock", what="study here"), pytest.raises(StoreError, match=in_use):
        try_lock(tmp_path)
    try_lock(tmp_path)


def test_runs_done_by_hand_share_the_directory(tmp_path: Path) -> None:
    share = {"what": "study", "shared": True}
    with (
        locked(tmp_path / ".lock", **share),
        locked(tmp_path / ".lock", **share),
        pytest.raises(StoreError, match="in use"),
    ):
        try_lock(tmp_path)


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from untaxed.studies.store import locked
with locked(Path({str(tmp_path / ".lock")!r}), what="study"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert (tmp_path / ".lock").read_text().isdigit()
    try_lock(tmp_path)


def test_damaged_scores_are_one_line_with_the_remedy(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "scores.npz", a=np.arange(1000.0))
    whole = (tmp_path / "scores.npz").read_bytes()
    for damaged in (b"", whole[:200], whole[:60] + bytes(40) + whole[100:]):
        (tmp_path / "scores.npz").write_bytes(damaged)
        with pytest.raises(StoreError, match=r"scores\.npz: cannot be read as scores .*; remove"):
            read_scores(tmp_path / "scores.npz")
