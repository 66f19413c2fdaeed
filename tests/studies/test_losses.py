"""Arms that add to the loss, pull weights back or train an adapter, in a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import WORDS
from tiny_world import prompts, write_rows

from untaxed.checkpoints import load_model, load_weights
from untaxed.errors import DataError, SpecError, Unsupported
from untaxed.studies import run_study
from untaxed.studies.results import runs
from untaxed.weights import same

METHODS: list[Any] = [
    "plain",
    {"replay": {"coefficient": 0.5, "batch_size": 2}},
    {"kl_loss": {"on": "own"}},
    [{"distill": {}}, {"l1": {"strength": 0.05}}],
    [{"lora": {"rank": 2, "learning_rate": 1e-2}}, {"averaging": {"initial_share": 0.5}}],
]


def with_data(world: dict[str, Any], folder: Path) -> dict[str, Any]:
    texts = [{"text": " ".join(WORDS[(i + 2 * k) % 28] for k in range(6))} for i in range(9)]
    more = {
        "replay": {"path": write_rows(folder / "replay.jsonl", texts)},
        "general_prompts": {"path": write_rows(folder / "general.jsonl", prompts()[-20:])},
    }
    return {**world, "data": {**world["data"], **more}}


def test_a_study_with_every_kind_of_them(world: dict[str, Any], tmp_path: Path) -> None:
    spec = {**with_data(world, tmp_path), "methods": METHODS}
    study = run_study(spec, tmp_path / "study", workers=0)
    found = {run["methods"][0]["method"] if run["methods"] else "plain": run for run in runs(study.directory)}
    assert set(found) == {"plain", "replay", "kl_loss", "distill", "lora"}
    assert all(run["status"] == "done" for run in found.values())
    initial = load_weights(Path(world["models"]["initial"]))
    weights = {name: load_weights(study.directory / "runs" / run["key"] / _last(run)) for name, run in found.items()}
    assert all(kept.keys() == initial.keys() for kept in weights.values())  # an adapter is merged
    for name in set(found) - {"plain"}:
        assert not same(weights[name], weights["plain"])
    moved = {name for name, tensor in weights["lora"].items() if not torch.equal(tensor, initial[name])}
    assert moved == {name for name in initial if "proj" in name}
    [half] = [point for point in found["lora"]["points"] if point["variant"] and point["variant"]["of"] == "last"]
    whole = [point for point in found["lora"]["points"] if point["variant"] is None][-1]
    assert half["validation"]["drift"]["forward_kl"] < whole["validation"]["drift"]["forward_kl"]
    load_model(study.directory / "runs" / found["lora"]["key"] / _last(found["lora"]))  # as any other model


def _last(run: dict[str, Any]) -> str:
    return str([point["weights"] for point in run["points"] if point["variant"] is None][-1])


@pytest.mark.parametrize(
    ("methods", "kind", "message"),
    [
        (["plain", {"replay": {}}], SpecError, "methods: replay needs data.replay, which is not given"),
        (["plain", {"distill": {}}], SpecError, "methods: distill needs data.general_prompts, which is not given"),
        (["plain", {"kl_loss": {}}], SpecError, "methods: kl_loss needs data.general_prompts, which is not given"),
        ([{"replay": {"texts": ["a"]}}], SpecError, "has no setting 'texts': a study takes them from its data"),
        ([{"replay": {"share": 1.0}}], SpecError, r"share must be in \(0, 1\), got 1.0"),
        ([{"replay": {"share": 0.2, "batch_size": 4}}], SpecError, "share says how many texts are read"),
        ([{"replay": {"batch_size": 0}}], SpecError, "batch_size must be a whole number of texts, at least 1, got 0"),
        ([{"kl_loss": {"coefficient": -1}}], SpecError, "coefficient must be at least 0, got -1"),
        ([{"kl_loss": {"direction": "back"}}], SpecError, "direction"),
        ([{"distill": {"temperature": 0}}], SpecError, "temperature must be above 0, got 0"),
        ([{"l2": {"strength": -1}}], SpecError, "strength must be at least 0, got -1"),
        ([{"l2": {}}], SpecError, "the setting `strength` is required"),
        ([{"rpo": {"eta": -0.1}}], SpecError, "eta must be at least 0, got -0.1"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    world: dict[str, Any], tmp_path: Path, methods: list[Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        run_study({**world, "methods": methods}, tmp_path / "study", workers=0)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("arm", "algorithm", "message"),
    [
        ([{"nspo": {"every": 2}}, {"l1": {"strength": 0.1}}], {}, "put nspo behind l1"),
        ([{"nspo": {}}, {"lora": {}}], {}, "nspo holds whole weights"),
        ([{"ema": {"decay": 0.5}}, {"bema": {"update_every": 1}}], {}, "ema and bema: two averages go along"),
        ({"rpo": {}}, {"loss_type": ["hinge"]}, r"rpo sets loss_type to .* the algorithm is given loss_type"),
        (
            {"nspo": {"every": 2, "layers": ["*.up_prj"]}},
            {},
            r"no linear layer is called '\*.up_prj'; did you mean '\*.up_proj'",
        ),
        (
            {"nspo": {"every": 2, "threshold": "rank", "value": 50}},
            {},
            "rank 50 is asked for, and the layer '.*' has 32 inputs",
        ),
        ([{"best_of_n": {"n": 2}}, {"replay": {}}], {}, "best_of_n is about the initial model alone"),
    ],
)
def test_what_contradicts_itself_or_the_model_is_said_before_anything_starts(
    world: dict[str, Any], tmp_path: Path, arm: Any, algorithm: dict[str, Any], message: str
) -> None:
    spec = {**with_data(world, tmp_path), "methods": ["plain", arm]}
    spec["algorithm"] = {**spec["algorithm"], **algorithm}
    with pytest.raises((SpecError, Unsupported), match=message):
        run_study(spec, tmp_path / "study", workers=0)
    assert not (tmp_path / "study").exists()


def test_rows_that_a_method_cannot_use_are_said_before_anything_starts(world: dict[str, Any], tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "answers.jsonl", [{"prompt": "w1 w2", "completion": "w3"}])
    spec = {**world, "data": {**world["data"], "reference_sets": {"facts": {"path": rows}}}}
    spec["methods"] = ["plain", {"ogpsa": {"loss": "preference"}}]
    with pytest.raises(DataError, match="'facts', row 0: loss 'preference' needs prompt, chosen and rejected"):
        run_study(spec, tmp_path / "study", workers=0)
    assert not (tmp_path / "study").exists()


def test_rpo_outside_dpo_is_refused(world: dict[str, Any], tmp_path: Path) -> None:
    spec = {**world, "methods": ["plain", {"rpo": {}}], "algorithm": {**world["algorithm"], "name": "kto"}}
    with pytest.raises(Unsupported, match="rpo adds to DPO's loss through TRL's list of losses, which only dpo has"):
        run_study(spec, tmp_path / "study", workers=0)
