"""Writing a checkpoint block by block."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import MIXED, directory
from safetensors.torch import load_file
from torch import Tensor

from untaxed.checkpoints import ShardedWriter, _claim, _writer, check_model_dir, layout, open_source
from untaxed.errors import CheckpointError, StoreError


def kinds_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def blocks(tensors: Mapping[str, Tensor], size: int) -> list[tuple[str, int, Tensor]]:
    return [
        (name, start, tensor.view(-1)[start : start + size])
        for name, tensor in tensors.items()
        for start in range(0, tensor.numel(), size)
    ]


def write(path: Path, tensors: Mapping[str, Tensor], size: int = 3, workers: int = 1, **settings: object) -> Path:
    with ShardedWriter(path, kinds_of(tensors), **settings) as writer, ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda job: writer.write(*job), blocks(tensors, size)))
    return path


def attempt(path: Path, body: Callable[[ShardedWriter], object]) -> None:
    with ShardedWriter(path, kinds_of(MIXED)) as writer:
        body(writer)


def test_one_file_is_the_one_that_safetensors_writes(tmp_path: Path) -> None:
    source = directory(tmp_path / "theirs", MIXED)
    path = write(tmp_path / "ours", MIXED)
    assert [file.name for file in path.iterdir()] == ["model.safetensors"]
    assert (path / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert (path / "model.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("shard_bytes", [1, 40, 100, 10**9])
def test_shards_hold_every_tensor_and_load(tmp_path: Path, shard_bytes: int) -> None:
    path = write(tmp_path / "model", MIXED, shard_bytes=shard_bytes)
    (path / "config.json").write_text("{}")
    assert check_model_dir(path, tokenizer=False) == {name: tuple(tensor.shape) for name, tensor in MIXED.items()}
    read = {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert all(read[name].float().equal(tensor.float()) for name, tensor in MIXED.items())
    sizes = [sum(tensor.nbytes for tensor in load_file(file).values()) for file in path.glob("*.safetensors")]
    assert all(size <= max(shard_bytes, max(tensor.nbytes for tensor in MIXED.values())) for size in sizes)
    index = path / "model.safetensors.index.json"
    assert index.is_file() == (len(sizes) > 1)
    if len(sizes) > 1:
        assert json.loads(index.read_text())["metadata"] == {"total_size": sum(sizes)}


@given(
    numels=st.lists(st.integers(0, 50), min_size=1, max_size=12),
    wide=st.lists(st.booleans(), min_size=12, max_size=12),
    most=st.integers(1, 300),
)
def test_a_layout_has_no_gap_and_no_overlap(numels: list[int], wide: list[bool], most: int) -> None:
    dtypes = [torch.float32 if is_wide else torch.bfloat16 for is_wide in wide]
    entries = {f"t{number}": (dtypes[number], (numel,)) for number, numel in enumerate(numels)}
    shards = layout(entries, shard_bytes=most, metadata={"by": "untaxed"})
    assert [name for shard in shards for name in sorted(shard.starts)] != []
    assert sorted(name for shard in shards for name in shard.starts) == sorted(entries)
    for shard in shards:
        spans = sorted((at, at + entries[n][1][0] * entries[n][0].itemsize, n) for n, at in shard.starts.items())
        assert spans[0][0] == len(shard.header)
        assert spans[-1][1] == shard.nbytes
        assert all(first[1] == second[0] for first, second in itertools.pairwise(spans))
        assert all(at % entries[name][0].itemsize == 0 for at, _, name in spans)
        assert json.loads(shard.header[8:])["__metadata__"] == {"format": "pt", "by": "untaxed"}


def test_order_threads_and_block_size_change_no_byte(tmp_path: Path) -> None:
    tensors = {f"layer.{number}": torch.randn(50, 7).bfloat16() for number in range(6)}
    expected = write(tmp_path / "one", tensors, 10**9, shard_bytes=2000)
    other = write(tmp_path / "two", dict(reversed(tensors.items())), 13, workers=4, shard_bytes=2000)
    again = write(tmp_path / "three", tensors, 13, workers=4, shard_bytes=2000)
    for file in expected.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()
    assert len(list(other.glob("*.safetensors"))) == len(list(expected.glob("*.safetensors")))


def test_values_are_cast_once_to_what_the_header_says(tmp_path: Path) -> None:
    values = torch.randn(100)
    with ShardedWriter(tmp_path / "model", {"w": (torch.bfloat16, (10, 10))}) as writer:
        writer.write("w", 0, values)
    assert load_file(tmp_path / "model" / "model.safetensors")["w"].equal(values.view(10, 10).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_numbers_that_the_dtype_cannot_hold_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    with (
        pytest.raises(CheckpointError, match=r"'w' holds a number beyond torch\.float.*'s largest, .*; write bfloat16"),
        ShardedWriter(tmp_path / "model", {"w": (dtype, (2,))}) as writer,
    ):
        writer.write("w", 0, torch.tensor([1.0, 1e6]))
    assert not list(tmp_path.iterdir())


def test_what_is_not_written_whole_does_not_appear(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match=r"not written exactly once: \['single'"),
        ShardedWriter(tmp_path / "model", {"single": (torch.float32, (4,))}) as writer,
    ):
        writer.write("single", 0, torch.ones(3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("other")])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def body(writer: ShardedWriter) -> None:
        writer.write("single", 0, MIXED["single"])
        raise error

    with pytest.raises(type(error)):
        attempt(tmp_path / "deep" / "er" / "model", body)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def body(writer: ShardedWriter) -> None:
        monkeypatch.setattr(_writer.os, "pwrite", full)
        writer.write("single", 0, MIXED["single"])

    with pytest.raises(StoreError, match=r"cannot write .*model: no space left on the device; free some"):
        attempt(tmp_path / "model", body)
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_onto_the_disk_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(_claim.shutil, "disk_usage", lambda _: usage)
    with (
        pytest.raises(StoreError, match=r"it needs 4,000\.0 MB and 1\.0 MB are free"),
        ShardedWriter(tmp_path / "model", {"w": (torch.float32, (10**9,))}),
    ):
        pytest.fail("opened")
    assert not list(tmp_path.iterdir())


def refused(path: Path, match: str, **settings: object) -> None:
    before = sorted(file for file in path.parent.rglob("*"))
    with pytest.raises(StoreError, match=match), ShardedWriter(path, kinds_of(MIXED), **settings):
        pytest.fail("opened")
    assert sorted(file for file in path.parent.rglob("*")) == before


def test_a_place_that_is_taken_is_refused(tmp_path: Path) -> None:
    model = directory(tmp_path / "model", MIXED)
    refused(model, "it exists already; give another directory")
    refused(model / "config.json", "it exists already")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    refused(tmp_path / "dangling", "it exists already")
    (tmp_path / "link").symlink_to(model)
    refused(tmp_path / "link", "it is one of the models that are read", parents=[model])
    refused(model, "it is one of the models that are read", parents=[tmp_path / "x" / ".." / "model"])
    refused(model / "merged", "it lies in .*model, which is read", parents=[model])


def test_an_empty_directory_is_a_free_place(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert (write(tmp_path / "model", MIXED) / "model.safetensors").is_file()


def test_a_place_that_somebody_else_writes_is_refused(tmp_path: Path) -> None:
    with ShardedWriter(tmp_path / "model", kinds_of(MIXED)) as writer:
        refused(tmp_path / "model", "another process is writing it")
        write(tmp_path / "model.b", MIXED)  # a name that starts alike is another place
        for job in blocks(MIXED, 5):
            writer.write(*job)
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_place_that_is_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    def body(writer: ShardedWriter) -> None:
        for job in blocks(MIXED, 5):
            writer.write(*job)
        directory(tmp_path / "model", {"theirs": torch.ones(1)})

    with pytest.raises(StoreError, match=r"cannot write .*model: Directory not empty"):
        attempt(tmp_path / "model", body)
    assert list(load_file(tmp_path / "model" / "model.safetensors")) == ["theirs"]
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


KILLED = """
import sys, time, torch
from pathlib import Path
from untaxed.checkpoints import ShardedWriter
with ShardedWriter(Path(sys.argv[1]), {"w": (torch.float32, (100,))}) as writer:
    writer.write("w", 0, torch.arange(50.0))
    print("half", flush=True)
    if sys.argv[2] == "wait":
        time.sleep(60)
    writer.write("w", 50, torch.arange(50.0, 100))
"""


def test_a_killed_write_leaves_no_model_and_the_next_one_the_same_bytes(tmp_path: Path) -> None:
    def start(name: str, how: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", KILLED, str(tmp_path / name), how]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        return process

    process = start("model", "wait")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".model.")
    with pytest.raises(CheckpointError, match="no such directory"):
        open_source(tmp_path / "model")
    for name in ("model", "other"):
        process = start(name, "go on")
        process.communicate()
        assert process.returncode == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model", "other"]
    one, two = (tmp_path / name / "model.safetensors" for name in ("model", "other"))
    assert one.read_bytes() == two.read_bytes()
    assert load_file(one)["w"].equal(torch.arange(100.0))


def test_files_stay_open_until_every_thread_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, real = threading.Event(), os.pwrite

    def slow(*args: object) -> int:
        started.set()
        time.sleep(0.2)
        return real(*args)

    with ShardedWriter(tmp_path / "model", {"w": (torch.float32, (4,))}) as writer:
        monkeypatch.setattr(_writer.os, "pwrite", slow)
        thread = threading.Thread(target=writer.write, args=("w", 0, torch.ones(4)))
        thread.start()
        started.wait()
    thread.join()
    assert load_file(tmp_path / "model" / "model.safetensors")["w"].equal(torch.ones(4))
    with pytest.raises(RuntimeError, match="the writer is closed"):
        writer.write("w", 0, torch.ones(4))


def test_what_cannot_be_laid_out_is_said() -> None:
    with pytest.raises(ValueError, match="shard_bytes must be at least 1, got 0"):
        layout({"w": (torch.float32, (1,))}, shard_bytes=0)
    with pytest.raises(ValueError, match="at least one tensor"):
        layout({})


@pytest.mark.parametrize("name", ["", ".", "sub/..", "here"])
def test_the_current_directory_is_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = tmp_path / name if name == "here" else Path(name)
    with (
        pytest.raises(StoreError, match="give the directory a name; the current one cannot be replaced"),
        ShardedWriter(path, kinds_of(MIXED)),
    ):
        pytest.fail("opened")
    assert not list((tmp_path / "here").iterdir())


def test_places_that_cannot_be_looked_up_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop" / "model", "cannot write .*loop.model: ")
    with pytest.raises(StoreError, match=r"cannot write .*: File name too long"):
        attempt(tmp_path / ("x" * 300) / "model", lambda _: pytest.fail("opened"))


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float32, 1e300), (torch.bfloat16, 3.4e38), (torch.float32, float("nan"))]
)
def test_what_becomes_infinite_is_refused_unless_allowed(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    tensor = torch.tensor([1.0, value], dtype=torch.float64)
    with (
        pytest.raises(CheckpointError, match=rf"'w' becomes NaN or infinite: its numbers go beyond {dtype}'s largest"),
        ShardedWriter(tmp_path / "model", {"w": (dtype, (2,))}) as writer,
    ):
        writer.write("w", 0, tensor)
    assert not list(tmp_path.iterdir())
    with ShardedWriter(tmp_path / "model", {"w": (dtype, (2,))}, allow_nonfinite=True) as writer:
        writer.write("w", 0, tensor)
    assert not load_file(tmp_path / "model" / "model.safetensors")["w"].isfinite().all()


def test_finite_numbers_with_an_infinite_sum_are_written(tmp_path: Path) -> None:
    tensors = {"w": torch.full((8,), 3e38), "h": torch.full((8,), 6e4, dtype=torch.float16)}
    assert load_file(write(tmp_path / "model", tensors) / "model.safetensors")["w"].equal(tensors["w"])
