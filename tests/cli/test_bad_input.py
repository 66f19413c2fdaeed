"""What bad input gets: one clear line, exit code 2, nothing half-written, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from untaxed.cli import app

Spec = dict[str, Any]


def study(spec: Spec, folder: Path, *words: str) -> Result:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return CliRunner().invoke(app, ["study", str(path), "--out", str(folder / "out"), "--workers", "0", *words])


def assert_refused(result: Result, line: str) -> None:
    """One line that contains `line`, exit code 2; a note of what was being done may stand before it."""
    said = [text for text in result.stderr.splitlines() if not text.startswith(("checking ", "measuring "))]
    assert len(said) == 1, result.stderr
    assert said[0].startswith("error: ")
    assert line in said[0]
    assert result.exit_code == 2
    assert result.stdout == ""


def rows(path: Path, change: Callable[[list[dict[str, Any]]], None], out: Path) -> str:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    change(found)
    out.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(out)


# --- the spec --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"methds": ["plain"]}, "spec.yaml: unknown key 'methds'; did you mean 'methods'?"),
        (
            {"algorithm": {"name": "dpo", "learning_rte": 1}},
            "no argument 'learning_rte'; did you mean 'learning_rate'?",
        ),
        ({"algorithm": {"name": "dpo", "max_steps": -1}}, "algorithm.max_steps: should be greater than or equal to 1"),
        ({"algorithm": {"name": "dpo", "beta": 0}}, "beta must be above 0, got 0"),
        (
            {"methods": [{"averaging": {"initial_share": 2}}]},
            "spec.yaml: methods.0.averaging: initial_share must be in [0, 1]",
        ),
        ({"methods": ["plain", {"kl": {"beta": "x"}}]}, "spec.yaml: methods.1.kl.beta: should be a valid number"),
        (
            {"methods": [{"elastic_reset": {"decay": 0.9}}]},
            "spec.yaml: methods.0.elastic_reset: the setting `reset_every` is required",
        ),
        ({"measure": {"abilities": {"select": []}}}, "measure."),
    ],
)
def test_keys_and_values(world: Spec, tmp_path: Path, change: Spec, line: str) -> None:
    assert_refused(study({**world, **change}, tmp_path), line)
    assert not (tmp_path / "out").exists()


def test_a_missing_spec(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["study", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "out")])
    assert_refused(result, "none.yaml: cannot be read: No such file or directory")


# --- models ----------------------------------------------------------------------------------------------------------


def truncate_shard(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def corrupt_header(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(b"\x10" + file.read_bytes()[1:])


def remove_config(model: Path) -> None:
    (model / "config.json").unlink()


def pickle_weights(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def ask_for_code(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "code.Model"}}))


def grow_tokenizer(model: Path) -> None:
    content = json.loads((model / "tokenizer.json").read_text())
    content["model"]["vocab"]["one-too-many"] = 10_000
    (model / "tokenizer.json").write_text(json.dumps(content))


def name_unknown_architecture(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "perceptron"}))


def remove_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (truncate_shard, "model.safetensors"),
        (corrupt_header, "model.safetensors"),
        (remove_config, "is not a model: config.json is missing"),
        (pickle_weights, "holds pickled weights (pytorch_model.bin), which can run code when loaded"),
        (ask_for_code, "asks for code of its own (auto_map), which is not run here"),
        (grow_tokenizer, "does not fit: it has token 10000 and the embedding 32 rows"),
        (remove_tokenizer, "has no tokenizer"),
        (
            name_unknown_architecture,
            "cannot be loaded: The checkpoint you are trying to load has model type `perceptron`",
        ),
        (shutil.rmtree, "model"),
    ],
)
def test_models(world: Spec, tiny_initial: Path, tmp_path: Path, spoil: Callable[[Path], None], line: str) -> None:
    model = Path(shutil.copytree(tiny_initial, tmp_path / "model"))
    spoil(model)
    assert_refused(study({**world, "models": {"initial": str(model)}}, tmp_path), line)
    assert not (tmp_path / "out").exists()


# --- data ------------------------------------------------------------------------------------------------------------


def prefer_itself(found: list[dict[str, Any]]) -> None:
    found[4]["rejected"] = found[4]["chosen"]


def lose_column(found: list[dict[str, Any]]) -> None:
    del found[4]["rejected"]


def lose_all(found: list[dict[str, Any]]) -> None:
    found.clear()


@pytest.mark.parametrize(
    ("spoil", "line"),
    [(prefer_itself, "row 5"), (lose_column, "row 5"), (lose_all, "preferences.jsonl")],
)
def test_preferences(world: Spec, tmp_path: Path, spoil: Callable[[Any], None], line: str) -> None:
    path = rows(Path(world["data"]["preferences"]["path"]), spoil, tmp_path / "preferences.jsonl")
    assert_refused(study({**world, "data": {**world["data"], "preferences": {"path": path}}}, tmp_path), line)
    assert not (tmp_path / "out").exists()


def test_a_missing_file_of_rows(world: Spec, tmp_path: Path) -> None:
    data = {**world["data"], "preferences": {"path": "none.jsonl"}}
    assert_refused(study({**world, "data": data}, tmp_path), str(tmp_path / "none.jsonl"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("reward", "line"),
    [
        ("study_rewards:nan", "reward 'proxy', row 0: expected a finite number, got nan"),
        ("study_rewards:short", "reward 'proxy' returned 1 values for 24 completions"),
        ("study_rewards:raising", "reward 'proxy' raised KeyError: 'label'"),
        ("study_rewards:none", "none"),
        ("no_such_module:reward", "no_such_module"),
    ],
)
def test_rewards(world: Spec, tmp_path: Path, reward: str, line: str) -> None:
    result = study({**world, "measure": {**world["measure"], "reward": {"proxy": reward}}}, tmp_path)
    assert_refused(result, line)
    assert not (tmp_path / "out").exists()


# --- the directory ---------------------------------------------------------------------------------------------------


def test_a_directory_that_is_not_empty(world: Spec, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    assert_refused(study(world, tmp_path), "is not empty and holds no study; name another directory with --out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_directory_that_cannot_be_written(world: Spec, tmp_path: Path) -> None:
    assert_refused(study(world, tmp_path, "--out", "/proc/untaxed"), "/proc/untaxed: cannot be written")


def test_a_disk_that_is_full(world: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("untaxed.studies.store.os.fsync", full)
        assert_refused(study(world, tmp_path), "no space left on the disk while writing")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".json", ".npz")]
    with monkeypatch.context() as patch:
        patch.setattr("untaxed.studies.points.write_scores", full)
        assert_refused(study(world, tmp_path), "No space left on device")
    assert study(world, tmp_path).exit_code == 0


# --- training --------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_stops_its_run_and_no_other(world: Spec, tmp_path: Path) -> None:
    """A learning rate of a million is a real way there; the sane arm of the same study goes on."""
    spec = {**world, "methods": ["plain", {"kl": {"beta": 1e38}}]}
    result = study(spec, tmp_path)
    assert result.exit_code == 1
    [failed] = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert "the loss is" in failed
    assert "at step" in failed
    results = [json.loads(path.read_text()) for path in tmp_path.glob("out/runs/*/result.json")]
    assert sorted(run["status"] for run in results) == ["done", "failed"]
