"""Whole merges of tiny models: what is written, that nothing else changes it, and how it ends when it cannot be."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.tiny import build_model_dir
from untaxed.checkpoints import load_model
from untaxed.errors import CheckpointError, SpecError, StoreError
from untaxed.merging import _engine as engine
from untaxed.merging import _plan as planning
from untaxed.merging import average, make_plan, merge, merged, run
from untaxed.merging._card import card
from untaxed.merging._recipe import parse_recipe

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [str(build_model_dir(folder / f"m{seed}", seed=seed)) for seed in range(3)]


def recipe(method: str, models: list[str], *, base: str | None = None, **numbers: Any) -> dict[str, Any]:
    own = {key: numbers.pop(key) for key in ("weight", "density") if key in numbers}
    said = {
        "merge_method": method,
        "models": [{"model": m, "parameters": own} if own else {"model": m} for m in models],
    }
    return said | ({"base_model": base} if base else {}) | ({"parameters": numbers} if numbers else {})


def every(models: list[str]) -> dict[str, dict[str, Any]]:
    base, *others = models
    return {
        "linear": recipe("linear", models, weight=0.5),
        "averaging": recipe("averaging", others[:1], base=base, initial_share=0.3),
        "task_arithmetic": recipe("task_arithmetic", others, base=base, weight=0.4),
        "slerp": recipe("slerp", others[:1], base=base, t=0.3),
        "ties": recipe("ties", others, base=base, weight=0.7, density=0.3),
        "dare_ties": recipe("dare_ties", others, base=base, weight=0.7, density=0.3),
        "dare_linear": recipe("dare_linear", others, base=base, weight=0.7, density=0.3, rescale="l1"),
        "model_stock": recipe("model_stock", others, base=base),
        "warp": recipe("warp", others, base=base),
    }


METHODS = sorted(every(["a", "b", "c"]))


def digest(directory: Path) -> str:
    return hashlib.sha256((directory / WEIGHTS).read_bytes()).hexdigest()


@pytest.mark.parametrize("method", METHODS)
def test_a_merge_of_files_is_the_rule_on_whole_tensors(
    models: list[str], method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BLOCK", 4096)  # so that tiny tensors, too, come in several blocks
    said = every(models)[method]
    plan = make_plan(said, workers=2)
    run(plan, tmp_path / "out")
    parents = {name: load_file(Path(name) / WEIGHTS) for name in models}
    written = load_file(tmp_path / "out" / WEIGHTS)
    assert {one.name for one in plan.tensors} == written.keys()
    for one in plan.tensors:
        assert one.rule is not None
        given = [parents[taken.parent][taken.name] for taken in one.models]
        base = None if one.base is None else parents[one.base.parent][one.base.name]
        assert torch.equal(written[one.name], merged(one.rule, given, base, name=one.name)), one.name


@pytest.mark.parametrize("method", ["ties", "warp", "dare_linear"])
def test_threads_and_shards_change_no_number(
    models: list[str], method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BLOCK", 4096)
    said, wanted = every(models)[method], {}
    for number, (workers, most) in enumerate([(1, 10**9), (4, 10**9), (3, 9000)]):
        out = tmp_path / f"out{number}"
        merge(said, out, workers=workers, shard_bytes=most)
        found = {k: v for file in out.glob("*.safetensors") for k, v in load_file(file).items()}
        assert len(list(out.glob("*.safetensors"))) == 1 or most == 9000
        wanted = wanted or found
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_merged_with_itself_is_that_model(models: list[str], method: str, tmp_path: Path) -> None:
    text = json.dumps(every(models)[method])
    same = [str(build_model_dir(tmp_path / f"copy{n}", seed=0)) for n in range(3)]  # a model is named once in a recipe
    for name, copy in zip(models, same):
        text = text.replace(name, copy)
    merge(json.loads(text), tmp_path / "out")
    assert digest(tmp_path / "out") == digest(Path(models[0]))


def test_the_result_is_a_model_with_its_tokenizer_and_card(models: list[str], tmp_path: Path) -> None:
    said = every(models)["ties"] | {"dtype": "bfloat16", "chat_template": "{{ messages }}"}
    source = merge(said, tmp_path / "out")
    assert {kind.dtype for kind in source.kinds.values()} == {torch.bfloat16}
    model = load_model(tmp_path / "out", dtype=torch.float32)
    assert torch.isfinite(model(torch.arange(4)[None]).logits).all()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (Path(models[0]) / "tokenizer.json").read_bytes()
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "merge_method: ties" in card
    assert all(Path(name).name in card for name in models)
    assert "Not measured" in card


def test_averaging_agrees_with_the_function(models: list[str], tmp_path: Path) -> None:
    merge(every(models)["averaging"], tmp_path / "out")
    initial, aligned = (load_file(Path(name) / WEIGHTS) for name in models[:2])
    wanted = average(initial, aligned, initial_share=0.3)
    found = load_file(tmp_path / "out" / WEIGHTS)
    for name in wanted:
        assert torch.equal(found[name], wanted[name])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_integers_are_those_of_the_larger_share_as_in_the_functions(
    models: list[str], share: float, tmp_path: Path
) -> None:
    for number, name in enumerate(models[:2]):
        path = tmp_path / f"m{number}"
        path.mkdir()
        tensors = load_file(Path(name) / WEIGHTS) | {"counts": torch.tensor([number, 2**40 + 1])}
        save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
        (path / "config.json").write_text((Path(name) / "config.json").read_text())
    initial, aligned = (str(tmp_path / f"m{number}") for number in range(2))
    written = average(initial, aligned, initial_share=share, out=tmp_path / "out")
    wanted = average(*(load_file(Path(name) / WEIGHTS) for name in (initial, aligned)), initial_share=share)
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[name], wanted[name]) for name in wanted)
    merge(recipe("slerp", [aligned], base=initial, t=1 - share), tmp_path / "arc")
    with safe_open(tmp_path / "arc" / WEIGHTS, "pt") as file:  # at one half of the first model, which is base_model
        assert file.get_tensor("counts").tolist() == [int(share < 0.5), 2**40 + 1]


def test_layers_of_several_models(models: list[str], tmp_path: Path) -> None:
    cut = [{"sources": [{"model": name, "layer_range": [0, 2]}]} for name in models[:2]]
    merge({"merge_method": "passthrough", "slices": cut}, tmp_path / "out")
    model = load_model(tmp_path / "out", dtype=torch.float32)
    assert model.config.num_hidden_layers == 4
    last = load_file(Path(models[1]) / WEIGHTS)["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(model.model.layers[3].mlp.up_proj.weight, last)
    assert torch.isfinite(model(torch.arange(4)[None]).logits).all()


def test_a_plan_says_what_will_be_done_and_touches_nothing(models: list[str], tmp_path: Path) -> None:
    said = every(models)["ties"]
    said["models"][0]["parameters"] = {"weight": [0.0, 1.0], "density": [{"filter": "mlp", "value": 0.2}, {"value": 1}]}
    plan = make_plan(said, workers=2)
    size = sum(kind.nbytes for kind in plan.kinds.values())
    assert plan.read_bytes == (2 * 3 * size, 4 * 3 * size)  # twice at least: both magnitudes and numbers are needed
    assert size < plan.write_bytes < size + 10_000
    lines = {where: how for where, how, _ in plan.blocks()}
    assert "weights 1/0.7, densities 0.2/0.3" in lines["model.layers.1 (mlp)"]
    assert not any(tmp_path.iterdir())


def test_memory_depends_on_blocks_and_not_on_models(models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(every(models)["linear"], workers=3)
    largest = max(kind.numel for kind in plan.kinds.values())
    blocks = 3 * (3 + planning.BESIDE) * planning.KEPT
    assert plan.peak_bytes == blocks * largest * 4
    monkeypatch.setattr(planning, "BLOCK", 1024)
    assert plan.peak_bytes == blocks * 1024 * 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("torch failed")])
def test_a_merge_that_is_interrupted_leaves_nothing(models: list[str], tmp_path: Path, error: Any) -> None:
    seen: list[int] = []

    def progress(nbytes: int) -> None:
        seen.append(nbytes)
        if len(seen) == 3:
            raise error

    plan = make_plan(every(models)["ties"], workers=2)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        run(plan, tmp_path / "out", progress=progress)
    assert not any(tmp_path.iterdir())
    threads = torch.get_num_threads()
    run(plan, tmp_path / "out")
    assert torch.get_num_threads() == threads
    merge(every(models)["ties"], tmp_path / "again", workers=1)
    assert digest(tmp_path / "out") == digest(tmp_path / "again")


def broken(models: list[str], folder: Path, value: float) -> str:
    path = folder / "broken"
    path.mkdir(parents=True)
    tensors = load_file(Path(models[1]) / WEIGHTS)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    (path / "config.json").write_text((Path(models[1]) / "config.json").read_text())
    return str(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_and_refused_unless_allowed(
    models: list[str], tmp_path: Path, value: float
) -> None:
    said = recipe("averaging", [broken(models, tmp_path, value)], base=models[0], initial_share=0.5)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        merge(said, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]
    merge(said, tmp_path / "out", allow_nonfinite=True)
    found = load_file(tmp_path / "out" / WEIGHTS)["model.layers.1.mlp.up_proj.weight"]
    assert not torch.isfinite(found[3, 5])
    assert torch.isfinite(found).sum() == found.numel() - 1


def test_bad_calls(models: list[str], tmp_path: Path) -> None:
    said = every(models)["linear"]
    with pytest.raises(SpecError, match="workers must be at least 1, got 0"):
        merge(said, tmp_path / "out", workers=0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="exists already"):
        merge(said, tmp_path / "out")
    with pytest.raises(StoreError):
        merge(said, models[0])
    assert (Path(models[0]) / WEIGHTS).exists()


def test_a_tokenizer_of_other_rows_is_refused_before_the_work(models: list[str], tmp_path: Path) -> None:
    other = Path(shutil.copytree(models[2], tmp_path / "other"))
    content = json.loads((other / "tokenizer.json").read_text())
    content["model"]["vocab"]["more"] = 32
    (other / "tokenizer.json").write_text(json.dumps(content))
    said = recipe("linear", models[:2], weight=0.5)
    for key in ({"tokenizer_source": str(other)}, {"tokenizer": {"source": str(other)}}):
        with pytest.raises(CheckpointError, match=r"there are 32, and its tokens need rows 32 to 32 \('more'\)"):
            make_plan(said | key)
    assert make_plan(said | {"tokenizer_source": models[2]}).tokenizer == Path(models[2])


def test_numbers_that_overflow_are_named_and_refused_unless_allowed(models: list[str], tmp_path: Path) -> None:
    said = recipe("task_arithmetic", [broken(models, tmp_path, 3e38)], base=models[0], weight=2.0)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight' becomes NaN or infinite: its numbers go beyond torch"):
        merge(said, tmp_path / "out")
    copied = recipe("passthrough", [broken(models, tmp_path / "more", 3.4e38)]) | {"dtype": "bfloat16"}
    with pytest.raises(
        CheckpointError, match=r"becomes NaN or infinite: its numbers go beyond torch\.bfloat16's large"
    ):
        merge(copied, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge(said, tmp_path / "out", allow_nonfinite=True)
    assert (tmp_path / "out" / WEIGHTS).exists()


def test_the_card_names_models_of_the_hub_alone(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(models[0]).parent)
    plan = make_plan(recipe("linear", ["./m0", "m1"], weight=0.5))
    assert "base_model" not in yaml.safe_load(card(plan, "out").split("---")[1])
    (tmp_path / "models").symlink_to(Path(models[0]).parent)
    monkeypatch.chdir(tmp_path)
    named = ["models/m0", "owner/name@v1.0", "other/name+models/m1", "gpt2"]
    plan = dataclasses.replace(plan, recipe=parse_recipe(recipe("linear", named, weight=0.5)))
    head = yaml.safe_load(card(plan, "out").split("---")[1])
    assert head["base_model"] == ["owner/name", "other/name", "gpt2"]
