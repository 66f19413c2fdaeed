"""``untaxed merge``: the plan, the merge, and one line for what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from tests.tiny import build_model_dir
from untaxed.cli import app
from untaxed.cli.outcome import one_line_errors

ROOT = str(Path(__file__).parents[2])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge")
    base, other = (str(build_model_dir(folder / f"m{seed}", seed=seed)) for seed in range(2))
    said = {"merge_method": "slerp", "base_model": base, "models": [{"model": other}], "parameters": {"t": [0.0, 1.0]}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(said))
    return folder / "recipe.yaml"


def untaxed(*words: str | Path | float) -> Result:
    return CliRunner().invoke(app, ["merge", *map(str, words)])


def test_a_recipe_is_merged(recipe: Path, tmp_path: Path) -> None:
    result = untaxed(recipe, tmp_path / "out")
    assert result.exit_code == 0
    assert f"merged: {tmp_path / 'out'} (21 tensors" in result.output
    first, last = (load_file(recipe.parent / name / "model.safetensors") for name in ("m0", "m1"))
    found = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.{}.mlp.up_proj.weight"
    assert found[name.format(0)].equal(first[name.format(0)])
    assert found[name.format(1)].equal(last[name.format(1)])


def test_the_plan_says_reads_writes_memory_and_ratios(recipe: Path, tmp_path: Path) -> None:
    result = untaxed(recipe, tmp_path / "out", "--plan", "--workers", 3)
    assert result.exit_code == 0
    for word in ("writes", "reads", "memory", "3 threads", "model.layers.1"):
        assert word in result.output
    assert not (tmp_path / "out").exists()
    numbers = json.loads(untaxed(recipe, "--plan", "--json").stdout)
    assert numbers["tensors"] == 21
    assert numbers["read_bytes"]["least"] == numbers["read_bytes"]["most"] > 2 * numbers["write_bytes"]
    assert {block["where"] for block in numbers["blocks"]} >= {"model.layers.1"}


def test_json_says_where_it_went(recipe: Path, tmp_path: Path) -> None:
    result = untaxed(recipe, tmp_path / "out", "--json")
    assert json.loads(result.stdout)["out"] == str(tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say where the merged model goes"),
        (["{tmp}", "--plan", "--shard-size", "0"], "--shard-size must be above 0"),
        (["{tmp}/out", "--workers", "0"], "workers must be at least 1"),
        (["{models}/m0"], "one of the models that are read"),
    ],
)
def test_a_wrong_call_is_one_line(recipe: Path, tmp_path: Path, words: list[str], said: str) -> None:
    result = untaxed(recipe, *(word.format(tmp=tmp_path, models=recipe.parent) for word in words))
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"merge_method": "tiess"}, "tiess"),
        ({"models": [{"model": "/no/such/model"}]}, "no such directory"),
        ({"parameters": {"tt": 1}}, "tt"),
        ({"slicess": []}, "slicess"),
    ],
)
def test_a_wrong_recipe_is_one_line(recipe: Path, tmp_path: Path, change: dict, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | change))
    result = untaxed(path, tmp_path / "out")
    assert (result.exit_code, len(result.stderr.strip().splitlines())) == (2, 1)
    assert said in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize("size", ["1e-10", "nan", "inf", "-1"])
def test_a_shard_size_that_is_none_is_one_line(recipe: Path, tmp_path: Path, size: str) -> None:
    result = untaxed(recipe, tmp_path / "out", f"--shard-size={size}")
    assert (result.exit_code, len(result.stderr.strip().splitlines())) == (2, 1)
    assert "--shard-size must be above 0, at least one byte and finite" in result.stderr


@pytest.mark.parametrize("name", ["x[/v1]", "run[final]"])
def test_brackets_in_a_name_are_printed(recipe: Path, tmp_path: Path, name: str) -> None:
    said = yaml.safe_load(recipe.read_text())
    shutil.copytree(said["models"][0]["model"], tmp_path / name)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(said | {"models": [{"model": str(tmp_path / name)}]}))
    result = untaxed(tmp_path / "recipe.yaml", "--plan")
    assert result.exit_code == 0
    assert "".join(result.stdout.split()).count(name) > 2


@pytest.mark.parametrize(
    ("method", "numbers", "said"),
    [
        ("extrapolation", {"initial_share": -1e300}, "weights must be at most 1e+30 in magnitude"),
        ("task_arithmetic", {"weight": 1e39}, "weights must be at most 1e+30 in magnitude, got 1e+39"),
    ],
)
def test_weights_beyond_float32_are_one_line(
    recipe: Path, tmp_path: Path, method: str, numbers: dict, said: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"merge_method": method, "parameters": numbers})
    )
    result = untaxed(path, tmp_path / "out")
    assert (result.exit_code, len(result.stderr.strip().splitlines())) == (2, 1)
    assert said in result.stderr


STRUCK = """
import os, signal, sys
from untaxed import merging
number = getattr(signal, sys.argv.pop())
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
signal.signal(signal.SIGHUP, signal.SIG_DFL)
def struck(*_, **__):
    os.kill(os.getpid(), number)
    signal.pause()
merging.run = struck
from untaxed.__main__ import main
main()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupted_merge_says_that_nothing_was_kept(recipe: Path, tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-c", STRUCK, "merge", str(recipe), str(tmp_path / "out"), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": ROOT})
    assert done.returncode == 130, done.stderr
    assert done.stderr == f"interrupted: nothing was kept, {tmp_path / 'out'} is as it was; start again\n"


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert one_line_errors(lambda: signal.getsignal(signal.SIGHUP))() is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
