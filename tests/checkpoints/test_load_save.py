from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from tiny import build_model_dir

from untaxed.checkpoints import fingerprint, load_model, load_tokenizer, load_weights, recover, save_model
from untaxed.errors import CheckpointError, StoreError


class Breaks:
    """A model or tokenizer whose saving fails half-way."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def save_pretrained(self, directory: Path) -> None:
        (Path(directory) / "model.safetensors").write_bytes(b"half")
        raise self.error


class Saves:
    """One that writes a file of the given content."""

    def __init__(self, content: str) -> None:
        self.content = content

    def save_pretrained(self, directory: Path) -> None:
        (Path(directory) / "content.txt").write_text(self.content)


def test_save_and_load_return_the_same_bits(tiny_initial: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(tiny_initial), load_tokenizer(tiny_initial)
    assert model.dtype == torch.float32
    assert not model.training
    save_model(model, tokenizer, tmp_path / "deep" / "copy")
    assert fingerprint(tmp_path / "deep" / "copy") == fingerprint(tiny_initial)
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["copy"]


def test_a_bfloat16_file_loads_as_float32_unless_asked(tmp_path: Path) -> None:
    path = build_model_dir(tmp_path / "narrow", dtype="bfloat16")
    assert {tensor.dtype for tensor in load_weights(path).values()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in load_model(path).parameters()} == {torch.float32}
    assert load_model(path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_tied_weights_survive(tmp_path: Path) -> None:
    path = build_model_dir(tmp_path / "tied", tied=True)
    assert "lm_head.weight" not in load_weights(path)
    model = load_model(path)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_loading_prints_and_logs_nothing(
    tiny_initial: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    load_model(tiny_initial)
    load_tokenizer(tiny_initial)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_weights_that_do_not_fit_the_configuration_are_refused(tiny_initial: Path, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_initial, tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"do not fit its config\.json: 9 missing, 0 of another shape"):
        load_model(path)
    (path / "config.json").write_text(json.dumps({**config, "hidden_size": 16}))
    with pytest.raises(CheckpointError, match="model"):
        load_model(path)
    (path / "config.json").write_text(json.dumps({**config, "model_type": "no_such_type"}))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(path)


def test_a_tokenizer_that_cannot_be_read_is_said(tiny_initial: Path, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_initial, tmp_path / "model")
    (path / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    with pytest.raises(CheckpointError, match=r"the tokenizer of .* cannot be loaded"):
        load_tokenizer(path)


def test_saving_replaces_what_was_there(tmp_path: Path) -> None:
    for content in ("first", "second"):
        save_model(Saves(content), Saves(content), tmp_path / "model")  # type: ignore[arg-type]
        assert (tmp_path / "model" / "content.txt").read_text() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("new_is_there", [False, True])
def test_a_kill_within_a_replace_loses_nothing(tmp_path: Path, new_is_there: bool) -> None:
    (tmp_path / ".model.a_b1.old").mkdir()
    (tmp_path / ".model.a_b1.old" / "content.txt").write_text("old")
    if new_is_there:
        save_model(Saves("new"), Saves("new"), tmp_path / "model")  # type: ignore[arg-type]
    recover(tmp_path.parent)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "content.txt").read_text() == ("new" if new_is_there else "old")


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StoreError, "no space left on the device; free some"),
        (
            SafetensorError("I/O error: No space left on device (os error 28)"),
            StoreError,
            "no space left on the device",
        ),
        (PermissionError(errno.EACCES, "Permission denied"), StoreError, "cannot write .*model: Permission denied"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (RuntimeError("other"), RuntimeError, "other"),
    ],
)
def test_a_failed_save_leaves_the_old_state_and_nothing_else(
    tmp_path: Path, error: BaseException, expected: type[BaseException], message: str
) -> None:
    save_model(Saves("old"), Saves("old"), tmp_path / "model")  # type: ignore[arg-type]
    with pytest.raises(expected, match=message):
        save_model(Breaks(error), Saves("new"), tmp_path / "model")  # type: ignore[arg-type]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "content.txt").read_text() == "old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(StoreError, match=r"cannot write .*: Permission denied"):
        save_model(Saves("x"), Saves("x"), tmp_path / "model")  # type: ignore[arg-type]


def test_a_file_where_the_folder_should_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*: (Not a directory|File exists)"):
        save_model(Saves("x"), Saves("x"), tmp_path / "file" / "model")  # type: ignore[arg-type]
