"""Reading a model block by block."""

from __future__ import annotations

import doctest
import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from made import EMBED, HEAD, MIXED, NORM, directory

from untaxed.checkpoints import _hub, _parents, _writer, open_source
from untaxed.errors import CheckpointError


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_blocks_put_together_are_the_tensor(tmp_path: Path, shards: int, size: int) -> None:
    source = open_source(directory(tmp_path / "model", MIXED, shards))
    assert source.nbytes == sum(tensor.nbytes for tensor in MIXED.values())
    for name, tensor in MIXED.items():
        assert source.kinds[name] == (tensor.dtype, tuple(tensor.shape))
        starts = range(0, max(1, tensor.numel()), size)
        stored = torch.cat([source.stored(name, start, start + size) for start in starts])
        assert stored.dtype == tensor.dtype
        assert stored.float().equal(tensor.view(-1).float())
        if tensor.is_floating_point():
            read = torch.cat([source.block(name, start, start + size) for start in starts])
            assert read.dtype == (torch.float64 if tensor.dtype == torch.float64 else torch.float32)
            assert read.equal(tensor.view(-1).to(read.dtype))


def test_what_is_read_is_fresh(tmp_path: Path) -> None:
    path = directory(tmp_path / "model", MIXED)
    before = (path / "model.safetensors").read_bytes()
    source = open_source(path)
    for name in ("single", "double", "brain"):
        source.block(name).zero_()
        source.stored(name).zero_()
        assert source.block(name).equal(MIXED[name].view(-1).to(source.block(name).dtype))
    assert (path / "model.safetensors").read_bytes() == before


def test_integers_are_not_blocks(tmp_path: Path) -> None:
    source = open_source(directory(tmp_path / "model", MIXED))
    with pytest.raises(CheckpointError, match=r"'number' of .* holds torch.int64, which is copied and not merged"):
        source.block("number")
    with pytest.raises(CheckpointError, match=r"has no tensor 'numbr' \(did you mean 'number'\?"):
        source.block("numbr")


def test_tied_names_read_what_they_are_tied_to(tmp_path: Path) -> None:
    embed = torch.randn(4, 2)
    source = open_source(directory(tmp_path / "model", {EMBED: embed}, tie_word_embeddings=True))
    assert HEAD in source
    assert HEAD not in source.kinds
    assert source.kind(HEAD) == source.kind(EMBED)
    assert source.block(HEAD, 2, 6).equal(embed.view(-1)[2:6])
    assert NORM not in source


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_no_number_is_named_unless_allowed(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    tensor = torch.zeros(10, dtype=dtype)
    tensor[7] = value
    path = directory(tmp_path / "model", {NORM: tensor})
    source = open_source(path)
    assert source.block(NORM, 0, 7).sum() == 0
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' of .*model holds NaN or infinity"):
        source.block(NORM, 5, 9)
    assert not open_source(path, allow_nonfinite=True).block(NORM).isfinite().all()


def test_large_finite_numbers_pass(tmp_path: Path) -> None:
    source = open_source(directory(tmp_path / "model", {NORM: torch.full((8,), 3e38)}))  # their sum is infinite
    assert source.block(NORM).isfinite().all()


def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = directory(tmp_path / "model", MIXED)
    source = open_source(path)
    os.truncate(path / "model.safetensors", 700)
    with pytest.raises(CheckpointError, match="was cut short while it was being read"):
        source.block("single")


def test_threads_read_the_same(tmp_path: Path) -> None:
    tensors = {str(number): torch.randn(1000) for number in range(8)}
    source = open_source(directory(tmp_path / "model", tensors, 3))
    wrong = []

    def read() -> None:
        for _ in range(30):
            wrong.extend(
                name for name, tensor in tensors.items() if not source.block(name, 10, 900).equal(tensor[10:900])
            )

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_files_are_closed_with_their_source(tmp_path: Path) -> None:
    path = directory(tmp_path / "model", MIXED, 3)
    gc.collect()
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for _ in range(5):
        open_source(path)
    gc.collect()
    assert (len(os.listdir("/proc/self/fd")) if before else 0) == before


def test_a_path_never_asks_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hub, "require", lambda *_, **__: pytest.fail("asked the hub"))
    for name in (tmp_path / "nowhere", "./nowhere", "../nowhere", "~/nowhere"):
        with pytest.raises(CheckpointError, match="there is no such directory"):
            open_source(name)
    with pytest.raises(CheckpointError, match="it is no hub id"):
        open_source("three/parts/here")
    for name in ("x" * 3000, "~nobody-of-this-name/model", "x" * 300 + "+" + str(tmp_path)):
        with pytest.raises(CheckpointError, match=r"is not a model: \S") as caught:
            open_source(name)
        assert len(str(caught.value)) < 250


def hub_of(copy: Callable[[list[str]], Path]) -> Callable[..., SimpleNamespace]:
    """A stand-in for huggingface_hub whose download notes what it is asked."""

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str], **_: object) -> str:
        return str(copy([name, str(revision), *allow_patterns]))

    return lambda *_, **__: SimpleNamespace(snapshot_download=snapshot_download)


def test_a_hub_id_is_downloaded_without_what_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = directory(tmp_path / "cached", MIXED, 3)
    asked: list[list[str]] = []
    monkeypatch.setattr(_hub, "require", hub_of(lambda what: asked.append(what) or path))
    source = open_source("owner/name@v1.0")
    assert source.label == "owner/name@v1.0"
    assert source.path == path
    assert asked[0][:2] == ["owner/name", "v1.0"]
    assert not any("safetensors" in pattern for pattern in asked[0])
    assert asked[1][2:] == ["model-0.safetensors", "model-1.safetensors", "model-2.safetensors"]


def test_the_hubs_cache_is_read_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub").constants
    cached = tmp_path / "models--owner--name"
    snapshot = directory(cached / "snapshots" / ("0" * 40), MIXED, 3)
    blobs = cached / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):  # the cache has links
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    source = open_source("owner/name")
    assert source.path == snapshot
    assert source.block("single").equal(MIXED["single"].view(-1))
    with pytest.raises(CheckpointError, match="the hub does not give it"):
        open_source("owner/name@other")


def test_examples_run() -> None:
    for module in (_writer, _parents):
        failed, tried = doctest.testmod(module)
        assert tried
        assert not failed


def test_a_hub_that_does_not_give_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(CheckpointError, match=r"no/such-model is not a model: .* the hub does not give it: ") as caught:
        open_source("no/such-model")  # the tests are offline
    assert "\n" not in str(caught.value)
