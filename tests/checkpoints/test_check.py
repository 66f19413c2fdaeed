from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from untaxed.checkpoints import check_model_dir, fingerprint, load_weights
from untaxed.errors import CheckpointError


@pytest.fixture
def model_dir(tiny_initial: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_initial, tmp_path / "model")


def edit(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def shard(directory: Path) -> list[Path]:
    """Splits the weights over two files with an index, as large models have it."""
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    files = [directory / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    names = sorted(weights)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    for file, half in zip(files, halves, strict=True):
        save_file({name: weights[name] for name in half}, file)
    index = {name: file.name for file, half in zip(files, halves, strict=True) for name in half}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return files


def test_a_good_directory_gives_its_shapes(tiny_initial: Path) -> None:
    shapes = check_model_dir(tiny_initial)
    assert shapes["model.embed_tokens.weight"] == (32, 32)
    assert shapes.keys() == load_weights(tiny_initial).keys()


def test_shards_read_as_one(model_dir: Path, tiny_initial: Path) -> None:
    shard(model_dir)
    assert check_model_dir(model_dir) == check_model_dir(tiny_initial)
    whole = load_weights(tiny_initial)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in load_weights(model_dir).items())


def test_every_truncation_is_found(model_dir: Path) -> None:
    file = model_dir / "model.safetensors"
    content = file.read_bytes()
    header = struct.unpack("<Q", content[:8])[0]
    for length in (0, 5, 8, 100, 8 + header, 8 + header + 17, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or corrupted"):
            check_model_dir(model_dir)
    file.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError, match=rf"it has {len(content) + 1} bytes and its header promises"):
        check_model_dir(model_dir)


def with_header(file: Path, change: Callable[[dict], None]) -> None:
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.update(shape=[31, 32]), "'model.norm.weight' takes 128 bytes and its shape needs 3968"),
        (lambda entry: entry.update(dtype="F31"), "its header is not readable"),
        (lambda entry: entry.pop("shape"), "its header is not readable"),
        (lambda entry: entry.update(data_offsets=[0, 128]), "starts at byte"),
    ],
)
def test_a_header_that_contradicts_itself_is_found(model_dir: Path, change: Callable, message: str) -> None:
    with_header(model_dir / "model.safetensors", lambda header: change(header["model.norm.weight"]))
    with pytest.raises(CheckpointError, match=message):
        check_model_dir(model_dir)


def test_garbage_in_the_header_is_found(model_dir: Path) -> None:
    file = model_dir / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[8:12] = b"\xff\xfe{["
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="its header is not readable"):
        check_model_dir(model_dir)
    content[:8] = b"\xff" * 8  # a length beyond any file
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="its header does not fit into its"):
        check_model_dir(model_dir)


def test_a_damaged_shard_is_named(model_dir: Path) -> None:
    second = shard(model_dir)[1]
    second.write_bytes(second.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is truncated"):
        check_model_dir(model_dir)
    second.unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors is missing, but .*index\.json names it"):
        check_model_dir(model_dir)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "model.bin"])
def test_an_index_that_points_elsewhere_is_refused(model_dir: Path, name: str) -> None:
    shard(model_dir)
    edit(model_dir / "model.safetensors.index.json", lambda index: index["weight_map"].update({"lm_head.weight": name}))
    with pytest.raises(CheckpointError, match="which is no safetensors file of this directory"):
        check_model_dir(model_dir)


def test_an_index_with_names_that_no_shard_holds_is_refused(model_dir: Path) -> None:
    file = shard(model_dir)[0].name
    edit(model_dir / "model.safetensors.index.json", lambda index: index["weight_map"].update(extra=file))
    with pytest.raises(CheckpointError, match="names 'extra', which no shard holds"):
        check_model_dir(model_dir)
    edit(model_dir / "model.safetensors.index.json", lambda index: index.update(weight_map=[1]))
    with pytest.raises(CheckpointError, match="weight_map is not a mapping"):
        check_model_dir(model_dir)


def test_what_is_no_model_is_said(tmp_path: Path, model_dir: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is not a model: there is no such directory"):
        check_model_dir(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"is not a model: config\.json is missing"):
        check_model_dir(tmp_path)
    (model_dir / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"is not a model: model\.safetensors is missing"):
        check_model_dir(model_dir)
    (model_dir / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        check_model_dir(model_dir)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.pkl"])
def test_pickled_weights_are_refused(model_dir: Path, name: str) -> None:
    (model_dir / "model.safetensors").rename(model_dir / name)
    with pytest.raises(CheckpointError, match=rf"holds pickled weights \({name}\), which can run code when loaded"):
        check_model_dir(model_dir)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused(model_dir: Path, name: str) -> None:
    edit(model_dir / name, lambda config: config.update(auto_map={"AutoModelForCausalLM": "modeling.Model"}))
    with pytest.raises(CheckpointError, match=rf"{name} asks for code of its own \(auto_map\)"):
        check_model_dir(model_dir)


def test_a_tokenizer_must_be_there_and_fit(model_dir: Path) -> None:
    edit(model_dir / "tokenizer.json", lambda content: content["model"]["vocab"].update(extra=32))
    with pytest.raises(CheckpointError, match="does not fit: it has token 32 and the embedding 32 rows"):
        check_model_dir(model_dir)
    (model_dir / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        check_model_dir(model_dir)
    assert check_model_dir(model_dir, tokenizer=False)


def test_fingerprint_follows_the_content_and_not_the_place(tiny_initial: Path, model_dir: Path) -> None:
    (model_dir / "README.md").write_text("a card changes nothing")
    assert fingerprint(model_dir) == fingerprint(tiny_initial)
    content = bytearray((model_dir / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (model_dir / "model.safetensors").write_bytes(content)
    assert fingerprint(model_dir) != fingerprint(tiny_initial)


def test_a_tensor_in_two_shards_or_in_another_than_the_index_says(model_dir: Path) -> None:
    first, second = shard(model_dir)
    name = next(iter(load_file(first)))
    edit(model_dir / "model.safetensors.index.json", lambda index: index["weight_map"].update({name: second.name}))
    with pytest.raises(CheckpointError, match=rf"says that '{name}' is in {second.name}, and it is in {first.name}"):
        check_model_dir(model_dir)
    save_file({**load_file(second), name: load_file(first)[name]}, second)
    with pytest.raises(CheckpointError, match=rf"holds '{name}' twice, in {first.name} and in {second.name}"):
        check_model_dir(model_dir)
    edit(model_dir / "model.safetensors.index.json", lambda index: index.update(weight_map={}))
    with pytest.raises(CheckpointError, match="is damaged: it names no file"):
        check_model_dir(model_dir)


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": [-1, -4], "data_offsets": [0, 16]},
        {"shape": [4.0], "data_offsets": [0, 16]},
        {"shape": [4], "data_offsets": [0.0, 16.0]},
        {"shape": [True, 4], "data_offsets": [0, 16]},
        {"shape": [-4], "data_offsets": [0, -16]},
    ],
)
def test_numbers_of_a_header_that_are_none_are_refused(model_dir: Path, entry: dict) -> None:
    text = json.dumps({"w": {"dtype": "F32", **entry}}).encode()
    (model_dir / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(CheckpointError, match="shape or place of tensor 'w' is not made of whole numbers"):
        check_model_dir(model_dir)


def test_a_tensor_that_the_index_does_not_list_is_refused(model_dir: Path) -> None:
    first = shard(model_dir)[0]
    save_file({**load_file(first), "stray": torch.ones(1)}, first)
    with pytest.raises(CheckpointError, match=rf"{first.name} holds 'stray', which .*index\.json does not list"):
        check_model_dir(model_dir)


def test_json_that_is_nested_without_end_is_one_line(model_dir: Path) -> None:
    deep = '{"a":' * 200_000 + "1" + "}" * 200_000
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        kept = (model_dir / name).read_text() if (model_dir / name).is_file() else None
        for text in (deep, '{"a":' * 101 + "1" + "}" * 101):  # the second is read, and could not be copied
            (model_dir / name).write_text(text)
            with pytest.raises(CheckpointError, match=rf"{name} is damaged: it is nested more than 100 levels deep"):
                check_model_dir(model_dir)
        (model_dir / name).unlink()
        if kept is not None:
            (model_dir / name).write_text(kept)
    (model_dir / "model.safetensors").write_bytes(struct.pack("<Q", len(deep)) + deep.encode())
    with pytest.raises(CheckpointError, match="its header is not readable"):
        check_model_dir(model_dir)


@pytest.mark.parametrize(
    "content",
    [
        {"model": 5},
        {"model": {"vocab": [1, 2]}},
        {"model": {"vocab": [[], []]}},
        {"model": {"vocab": {"a": "b"}}},
        {"added_tokens": 5},
        {"added_tokens": [{"id": "1", "content": "a"}]},
    ],
)
def test_a_tokenizer_file_that_is_damaged_is_one_line(model_dir: Path, content: dict) -> None:
    (model_dir / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged: (its vocabulary|added_tokens) is"):
        check_model_dir(model_dir)


def test_a_file_name_longer_than_any_is_one_line(model_dir: Path) -> None:
    shard(model_dir)
    name = "x" * 400 + ".safetensors"
    edit(model_dir / "model.safetensors.index.json", lambda index: index["weight_map"].update({"lm_head.weight": name}))
    with pytest.raises(CheckpointError, match=r"names 'xxx.*\.\.\., which is no safetensors file of this directory"):
        check_model_dir(model_dir)


@pytest.mark.parametrize(
    ("name", "shape", "match"),
    [("\ud800", [0], "has half of a character"), ("w", [0, 2**62, 2**62], "no tensor has as many entries")],
)
def test_what_no_tensor_can_be_called_or_shaped_is_refused(
    model_dir: Path, name: str, shape: list[int], match: str
) -> None:
    text = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (model_dir / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(CheckpointError, match=match) as caught:
        check_model_dir(model_dir)
    str(caught.value).encode()
