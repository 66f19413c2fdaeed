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
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from untaxed.cli import app

Spec = dict[str, Any]


def study(spec: Spec, folder: Path, *words: str) -> Result:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return CliRunner().invoke(app, ["study", str(path), "--out", str(folder / "out"), "--workers", "0", *words])


def assert_refused(result: Result, line: str) -> None:
    """One line that contains `line`, exit code 2; a note of what was being done may stand before it."""
    said = [text for text in result.stderr.splitlines() if not text.startswith(("checking ", "measuring ", "trying "))]
    assert len(said) == 1, result.stderr
    assert said[0].startswith("error: ")
    assert line in said[0]
    assert result.exit_code == 2
    assert result.stdout == ""


def assert_both_refuse(spec: Spec, folder: Path, line: str) -> None:
    """A study and its plan say the same, before anything is trained or written."""
    for words in ([], ["--plan"]):
        assert_refused(study(spec, folder, *words), line)
        assert not (folder / "out").exists()


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
            "spec.yaml: methods.0.elastic_reset: reset_every is missing: give it, or reset_when",
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


def write_a_word_for_a_size(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "hidden_size": "abc"}))


def forget_eos(model: Path) -> None:
    config = json.loads((model / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))


def diverge(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    weights["lm_head.weight"][0, 0] = float("-inf")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


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
        (write_a_word_for_a_size, "model cannot be loaded: Validation error for field 'hidden_size': TypeError: "),
        (forget_eos, "model has no eos_token, which dpo needs; name one of its tokens as eos_token in"),
        (diverge, "model are not finite ('lm_head.weight'; 2 of 21 tensors): its training diverged, or"),
    ],
)
def test_models(world: Spec, tiny_initial: Path, tmp_path: Path, spoil: Callable[[Path], None], line: str) -> None:
    model = Path(shutil.copytree(tiny_initial, tmp_path / "model"))
    spoil(model)
    assert_both_refuse({**world, "models": {"initial": str(model)}}, tmp_path, line)


@pytest.mark.parametrize("role", ["pretrained", "aligned"])
def test_weights_that_are_not_finite(world: Spec, tiny_initial: Path, tmp_path: Path, role: str) -> None:
    model = Path(shutil.copytree(tiny_initial, tmp_path / "model"))
    diverge(model)
    models = {**world["models"], role: [str(model)] if role == "aligned" else str(model)}
    spec = {**world, "models": models, "algorithm": None if role == "aligned" else world["algorithm"]}
    assert_both_refuse(spec, tmp_path, "model are not finite ('lm_head.weight'; 2 of 21 tensors)")


def test_given_checkpoints_that_cannot_be_loaded(world: Spec, tiny_initial: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_initial, tmp_path / "model"))
    write_a_word_for_a_size(model)
    spec = {**world, "models": {**world["models"], "aligned": [str(tiny_initial), str(model)]}, "algorithm": None}
    assert_both_refuse(spec, tmp_path, "model cannot be loaded: Validation error for field 'hidden_size': TypeError: ")


# --- data ------------------------------------------------------------------------------------------------------------


def prefer_itself(found: list[dict[str, Any]]) -> None:
    found[4]["rejected"] = found[4]["chosen"]


def lose_column(found: list[dict[str, Any]]) -> None:
    del found[4]["rejected"]


def lose_all(found: list[dict[str, Any]]) -> None:
    found.clear()


def write_a_number(found: list[dict[str, Any]]) -> None:
    found[4]["rejected"] = 3


def write_numbers(found: list[dict[str, Any]]) -> None:
    for row in found:
        row["chosen"], row["rejected"] = 4, 3


def write_null(found: list[dict[str, Any]]) -> None:
    found[4]["rejected"] = None


def cut_a_character(found: list[dict[str, Any]]) -> None:
    found[4]["prompt"] = "w1\ud800"


def talk(found: list[dict[str, Any]]) -> None:
    for row in found:
        row.update({name: [{"role": "user", "content": text}] for name, text in row.items()})


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (prefer_itself, "preferences.jsonl, row 5: chosen equals rejected"),
        (lose_column, "preferences.jsonl, row 5: no column 'rejected'"),
        (lose_all, "preferences.jsonl"),
        (write_a_number, "preferences.jsonl, row 5: rejected is 3, which is int; expected a text"),
        (write_numbers, "preferences.jsonl, row 1: chosen is 4, which is int; expected a text"),
        (write_null, "preferences.jsonl, row 5: rejected is null; expected a text"),
        (cut_a_character, "preferences.jsonl, row 5: prompt holds '\\ud800' at character 3, half of a character"),
        (talk, "has no chat template to make texts of them; give texts, or"),
    ],
)
def test_preferences(world: Spec, tmp_path: Path, spoil: Callable[[Any], None], line: str) -> None:
    path = rows(Path(world["data"]["preferences"]["path"]), spoil, tmp_path / "preferences.jsonl")
    assert_both_refuse({**world, "data": {**world["data"], "preferences": {"path": path}}}, tmp_path, line)


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_a_length_that_leaves_no_pair(world: Spec, tmp_path: Path, name: str) -> None:
    spec = {**world, "algorithm": {**world["algorithm"], "name": name, "max_length": 2}}
    assert_both_refuse(spec, tmp_path, "rows have prompts of 2 tokens or more (max_length), so that nothing is left")


def test_whatever_the_trainer_does_not_like(world: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trl

    def refuse(*_: Any, **__: Any) -> None:
        raise KeyError("a long story\n\nwith its point at the end")

    monkeypatch.setattr(trl.DPOTrainer, "_prepare_dataset", refuse)
    assert_both_refuse(world, tmp_path, "error: algorithm dpo: TRL cannot build DPOTrainer with these arguments, data")


def test_a_first_step_that_breaks_the_plan(world: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trl

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("a long story\nwith its point")

    monkeypatch.setattr(trl.DPOTrainer, "training_step", fail)
    result = study(world, tmp_path, "--plan")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "error: trying out a few steps: ValueError: with its point"


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
        ("study_rewards:huge", "reward 'proxy', row 0: expected a number, got 1000"),
        ("study_rewards:none", "none"),
        ("no_such_module:reward", "no_such_module"),
    ],
)
def test_rewards(world: Spec, tmp_path: Path, reward: str, line: str) -> None:
    assert_both_refuse({**world, "measure": {**world["measure"], "reward": {"proxy": reward}}}, tmp_path, line)


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
        assert_refused(study(world, tmp_path), "no space left on the disk while writing")
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


def test_a_reward_that_breaks_on_the_way_stops_its_run_at_its_step(world: Spec, tmp_path: Path) -> None:
    result = study({**world, "measure": {**world["measure"], "reward": {"proxy": "study_rewards:late"}}}, tmp_path)
    assert result.exit_code == 1
    [failed] = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert "seed 0: at step 2: reward 'proxy', row 0: expected a finite number, got nan for " in failed
    assert failed.endswith("; return one finite number for every completion")


def test_a_model_that_only_measuring_finds_diverged_names_the_step(world: Spec, tmp_path: Path) -> None:
    """Its weights are finite, and what they compute is not."""
    algorithm = {**world["algorithm"], "learning_rate": 1e18, "warmup_steps": 0, "max_grad_norm": 1.0}
    spec = {**world, "algorithm": algorithm, "methods": ["plain"], "measure": {**world["measure"], "every": 1}}
    result = study(spec, tmp_path)
    assert result.exit_code == 1
    [failed] = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert "seed 0: at step 1: " in failed
    assert failed.endswith("the model has diverged; lower learning_rate")
