"""The cache: an entry is made once, appears whole or not at all, and two processes do not make it twice."""

from __future__ import annotations

import errno
import logging
import threading
import time
from pathlib import Path

import pytest

from untaxed.errors import StoreError
from untaxed.studies.cache import cached, content_key, default_cache, told


def test_an_entry_is_made_once_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def make(path: Path) -> None:
        calls.append(path)
        path.mkdir()
        (path / "file").write_text("whole")

    with caplog.at_level(logging.DEBUG, "untaxed.prepare"):
        first = cached(tmp_path / "cache", "thing-1", make, what="a thing")
        second = cached(tmp_path / "cache", "thing-1", make, what="a thing")
    assert first == second == tmp_path / "cache" / "thing-1"
    assert (first / "file").read_text() == "whole"
    assert len(calls) == 1
    assert calls[0] != first  # it is made beside and renamed
    said = [record.message for record in caplog.records]
    assert said[0].startswith("a thing: making it")
    assert said[1] == "a thing: done in 0 s"
    assert said[2].startswith("a thing: found in")


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def make(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        cached(tmp_path, "thing", make, what="a thing")
    assert [path.name for path in tmp_path.iterdir()] == [".thing.lock"]
    assert cached(tmp_path, "thing", Path.touch, what="").exists()


def test_two_at_once_make_it_once(tmp_path: Path) -> None:
    calls = []

    def make(path: Path) -> None:
        calls.append(path)
        time.sleep(0.2)
        path.write_text("whole")

    threads = [threading.Thread(target=cached, args=(tmp_path, "k", make), kwargs={"what": ""}) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_keys_tell_contents_apart() -> None:
    assert content_key("sft", {"a": 1, "b": 2}) == content_key("sft", {"b": 2, "a": 1})
    assert len({content_key("sft", 1), content_key("sft", 2), content_key("samples", 1)}) == 3


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="set UNTAXED_CACHE"):
        cached(tmp_path / "file" / "cache", "k", lambda path: None, what="")


def test_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNTAXED_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("UNTAXED_CACHE")
    assert default_cache() == Path.home() / ".cache" / "untaxed"


def test_what_is_done_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    with told(said.append):
        cached(tmp_path, "k", Path.touch, what="a thing")
        cached(tmp_path, "k", Path.touch, what="a thing")
    cached(tmp_path, "other", Path.touch, what="a thing")
    assert [text.partition(" (")[0] for text in said] == ["a thing: making it", "a thing: done in 0 s"]


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    (tmp_path / ".thing-abc").mkdir()
    (tmp_path / ".thing-abc" / "thing").write_text("half")
    cached(tmp_path, "thing", Path.touch, what="")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".thing.lock", "thing"]


def test_a_full_disk(tmp_path: Path) -> None:
    def make(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreError, match=r"a thing: the disk of .* is full; free space or set UNTAXED_CACHE"):
        cached(tmp_path, "thing", make, what="a thing")
    assert [path.name for path in tmp_path.iterdir()] == [".thing.lock"]
