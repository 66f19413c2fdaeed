from __future__ import annotations

import gc
import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from made import EMBED, HEAD, MIXED, directory
from safetensors.torch import load_file, save_file

from untaxed.checkpoints import LazyWeights
from untaxed.errors import CheckpointError


@pytest.mark.parametrize("shards", [1, 3])
def test_every_dtype_and_shape_reads_as_it_was_written(tmp_path: Path, shards: int) -> None:
    weights = LazyWeights(directory(tmp_path / "model", MIXED, shards))
    assert weights.shapes == {name: tuple(tensor.shape) for name, tensor in MIXED.items()}
    assert weights.dtypes == {name: tensor.dtype for name, tensor in MIXED.items()}
    for name, tensor in MIXED.items():
        read = weights.tensor(name)
        assert read.dtype == tensor.dtype
        assert read.shape == tensor.shape
        assert read.float().equal(tensor.float())
        assert read.data_ptr() % read.dtype.itemsize == 0


def test_a_view_outlives_its_owner_and_parts_are_views(tmp_path: Path) -> None:
    weights = LazyWeights(directory(tmp_path / "model", MIXED))
    whole, part = weights.tensor("single"), weights.part("single", 5, 9)
    assert part.data_ptr() == whole.data_ptr() + 5 * 4
    assert weights.part("single").shape == (12,)
    shutil.rmtree(tmp_path / "model")
    del weights
    gc.collect()
    assert part.tolist() == [5, 6, 7, 8]
    assert whole.equal(MIXED["single"])


def test_writing_to_a_view_never_reaches_the_file(tmp_path: Path) -> None:
    path = directory(tmp_path / "model", MIXED)
    before = (path / "model.safetensors").read_bytes()
    LazyWeights(path).tensor("single").zero_()
    assert (path / "model.safetensors").read_bytes() == before


def test_what_a_file_does_not_align_is_copied(tmp_path: Path) -> None:
    path = directory(tmp_path / "model", MIXED)
    file = path / "model.safetensors"
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    text = content[8 : 8 + length].rstrip()
    text += b" " * ((1 - len(text)) % 8)  # the data starts at an odd byte
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    weights = LazyWeights(path)
    assert weights.entries["single"].start % 2
    for name, tensor in MIXED.items():
        assert weights.tensor(name).float().equal(tensor.float()), name
        assert weights.tensor(name).data_ptr() % tensor.dtype.itemsize == 0


def test_agrees_with_the_library(tiny_initial: Path) -> None:
    weights, whole = LazyWeights(tiny_initial), load_file(tiny_initial / "model.safetensors")
    assert weights.entries.keys() == whole.keys()
    assert all(weights.tensor(name).equal(tensor) for name, tensor in whole.items())


@pytest.mark.parametrize(("stored", "asked"), [(EMBED, HEAD), (HEAD, EMBED)])
@pytest.mark.parametrize("config", [{"tie_word_embeddings": True}, {}])
def test_a_tied_tensor_is_found_under_either_name(tmp_path: Path, stored: str, asked: str, config: dict) -> None:
    tensors = {stored: torch.randn(4, 2), "model.norm.weight": torch.ones(2)}
    weights = LazyWeights(directory(tmp_path / "model", tensors, **config))
    assert weights.tied_to(asked) == stored
    assert asked not in weights.shapes
    assert weights.tensor(asked).equal(tensors[stored])
    assert weights.tied_to(stored) is None


def test_what_is_not_tied_is_absent(tmp_path: Path) -> None:
    tensors = {EMBED: torch.randn(4, 2)}
    weights = LazyWeights(directory(tmp_path / "untied", tensors, tie_word_embeddings=False))
    assert weights.tied_to(HEAD) is None
    with pytest.raises(
        CheckpointError, match=r"has no tensor 'model\.embed_token\.weight' \(did you mean 'model\.embed_"
    ):
        weights.tensor("model.embed_token.weight")
    two = LazyWeights(directory(tmp_path / "two", {**tensors, "vision.embed_tokens.weight": torch.ones(1, 1)}))
    assert two.tied_to(HEAD) is None  # which of them, nothing says


def test_an_adapter_opens(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1}))
    with pytest.raises(CheckpointError, match=r"is not an adapter: adapter_model\.safetensors is missing"):
        LazyWeights(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin\), which can run code"):
        LazyWeights(tmp_path)
    save_file({"x.lora_A.weight": torch.ones(1, 2)}, tmp_path / "adapter_model.safetensors")
    weights = LazyWeights(tmp_path)
    assert weights.adapter
    assert weights.config["r"] == 1
    assert weights.tensor("x.lora_A.weight").tolist() == [[1.0, 1.0]]


def test_damage_is_found_when_opening(tmp_path: Path) -> None:
    path = directory(tmp_path / "model", MIXED)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated or corrupted"):
        LazyWeights(path)
    with pytest.raises(CheckpointError, match="no such directory"):
        LazyWeights(tmp_path / "nowhere")


def test_a_dtype_that_torch_lacks_is_named(tmp_path: Path) -> None:
    path = directory(tmp_path / "model", {"w": torch.zeros(4, dtype=torch.uint8)})
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"U8"', b'"F4"').replace(b'"shape":[4]', b'"shape":[8]'))
    weights = LazyWeights(path)
    assert weights.dtypes == {"w": None}
    with pytest.raises(CheckpointError, match="stored as F4, which this torch does not have"):
        weights.tensor("w")
