"""How runs end: what was finished stays finished, whatever fails later, and what was trained is not trained twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from untaxed import training
from untaxed.cli import app
from untaxed.studies import Study, load_results, run_study
from untaxed.studies.results import runs
from untaxed.studies.store import read_json, read_scores
from untaxed.studies.study import planned

MORE = ["plain", "early_stopping", {"averaging": {"initial_share": {"sweep": [0.2, 0.4, 0.6]}}}]
DOWN = "reward 'proxy' raised ConnectionError: the reward service is down"


@pytest.fixture(scope="module")
def serviced(world: dict[str, Any]) -> dict[str, Any]:
    return {**world, "measure": {**world["measure"], "reward": {"proxy": "study_rewards:service"}}}


@pytest.fixture(scope="module")
def study(serviced: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run_study(serviced, tmp_path_factory.mktemp("endings") / "whole", workers=0)


@pytest.fixture(scope="module")
def whole(serviced: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Study:
    """With one share more, in one go."""
    return run_study({**serviced, "methods": MORE}, tmp_path_factory.mktemp("endings") / "more", workers=0)


@pytest.fixture
def copy(study: Study, tmp_path: Path) -> Path:
    return Path(shutil.copytree(study.directory, tmp_path / "out"))


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds that are trained from here on."""
    seeds: list[int] = []
    train = training.train

    def counting(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        seeds.append(trainer.args.seed)
        return train(trainer, *args, **kwargs)

    monkeypatch.setattr(training, "train", counting)
    return seeds


def called(spec: dict[str, Any], out: Path, *words: str, workers: int = 0) -> Result:
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(spec))
    return CliRunner().invoke(app, ["study", str(path), "--out", str(out), "--workers", str(workers), *words])


def kept(folder: Path) -> dict[str, Any]:
    """What a finished run may not lose: its points, scores and weights."""
    result = read_json(folder / "result.json")
    scores = {name: value.tolist() for name, value in read_scores(folder / "scores.npz").items()}
    weights = {path.parent.name: path.read_bytes() for path in folder.glob("weights/*/model.safetensors")}
    return {"points": result["points"], "scores": scores, "weights": weights, "status": result["status"]}


def measured(out: Path) -> dict[Any, Any]:
    """What was measured along the way; which points are tested too depends on what there was to choose from."""
    return {(point["run"], point["name"]): point["validation"] for point in load_results(out)}


# --- variants that cannot be measured --------------------------------------------------------------------------------


def test_a_variant_that_fails_takes_nothing_from_a_finished_run(
    serviced: dict[str, Any], copy: Path, whole: Study, trainings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    [folder] = copy.glob("runs/*")
    before = kept(folder)
    monkeypatch.setenv("SERVICE_DOWN", "1")
    result = called({**serviced, "methods": MORE}, copy)
    assert result.exit_code == 1, result.output
    line = f"averaging-0.4@last, averaging-0.4@best_proxy could not be measured: {DOWN}. What was finished is kept;"
    assert sum(line in text for text in result.stderr.splitlines()) == 2  # as it happens, and at the end
    assert "--retry-failed" not in result.stderr
    assert "Traceback" not in result.stderr
    assert kept(folder) == before
    summary = read_json(copy / "summary.json")
    assert summary["unfinished"] == "variants of 1 run have yet to be measured"
    assert any("averaging-0.4@last" in caveat for caveat in summary["caveats"])
    assert "averaging-0.4@last" in (copy / "report.html").read_text()
    monkeypatch.delenv("SERVICE_DOWN")
    again = called({**serviced, "methods": MORE}, copy)
    assert again.exit_code == 0, again.output
    assert trainings == []
    assert measured(copy) == measured(whole.directory)
    assert not (folder / "error.txt").exists()


def test_an_arm_whose_variants_all_fail_is_shown_as_not_there(
    serviced: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {**serviced, "methods": ["plain"]}
    assert called(spec, tmp_path / "out").exit_code == 0
    monkeypatch.setenv("SERVICE_DOWN", "1")
    assert (
        called({**spec, "methods": ["plain", {"averaging": {"initial_share": 0.2}}]}, tmp_path / "out").exit_code == 1
    )
    [plain, averaging] = read_json(tmp_path / "out" / "summary.json")["arms"]
    assert (plain["settings"], averaging["settings"]) == (2, 0)
    assert averaging["tax"]["ship"]["mean"] is None
    assert called({**spec, "methods": ["plain"]}, tmp_path / "out").exit_code == 0, "the arm is not asked for any more"


def test_a_worker_that_dies_over_a_variant_takes_nothing_from_a_finished_run(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where the variant is added to a finished run, nor where it is one of the run's first."""
    order = tmp_path / "order"
    monkeypatch.setenv("DEADLY", str(order))
    spec = {**world, "measure": {**world["measure"], "reward": {"proxy": "study_rewards:deadly"}}}
    order.write_text("5")  # two at initial, three at the two steps; then the first variant
    result = called(spec, tmp_path / "out", workers=1)
    assert result.exit_code == 1, result.output
    line = (
        "averaging-0.2@last, averaging-0.2@best_proxy and 2 more variants could not be measured: "
        "the worker died, killed by SIGKILL (out of memory?)"
    )
    assert line in result.stderr
    [folder] = tmp_path.glob("out/runs/*")
    first = read_json(folder / "result.json")
    assert (first["status"], [point["name"] for point in first["points"]]) == ("done", ["step-2", "step-4"])
    assert not (folder / "resume").exists()
    assert called(spec, tmp_path / "out").exit_code == 0
    before = kept(folder)
    order.write_text("0")
    assert called({**spec, "methods": MORE}, tmp_path / "out", workers=1).exit_code == 1
    assert kept(folder) == before
    assert called({**spec, "methods": MORE}, tmp_path / "out").exit_code == 0
    assert read_json(folder / "result.json")["train_seconds"] == first["train_seconds"], "nothing was trained again"
    assert measured(run_study({**spec, "methods": MORE}, tmp_path / "alone", workers=0).directory) == measured(
        tmp_path / "out"
    )


def test_one_variant_that_fails_does_not_stop_the_others(
    serviced: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from untaxed.studies import variants

    inner = variants._variant_model

    def failing(*args: Any) -> Any:
        if args[4][0].settings()["initial_share"] == 0.2:
            raise ValueError("cannot be averaged")
        return inner(*args)

    monkeypatch.setattr(variants, "_variant_model", failing)
    study = run_study(serviced, tmp_path, workers=0)
    assert [run["lacking"] for run in study.failed] == [["averaging-0.2@last", "averaging-0.2@best_proxy"]]
    [run] = runs(tmp_path)
    assert "averaging-0.6@last" in [point["name"] for point in run["points"]]
    [folder] = tmp_path.glob("runs/*")
    assert "cannot be averaged" in (folder / "error.txt").read_text()


# --- trainings that stop ------------------------------------------------------------------------


def test_a_training_whose_worker_died_goes_on_from_its_last_state(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = tmp_path / "order"
    monkeypatch.setenv("DEADLY", str(order))
    measure = {**world["measure"], "reward": {"proxy": "study_rewards:deadly"}}
    spec = {**world, "measure": measure, "methods": ["plain"], "checkpoint_every": 1}
    order.write_text("3")  # two at initial, one at step 2; then step 4
    assert called(spec, tmp_path / "out", workers=1).exit_code == 1
    [folder] = tmp_path.glob("out/runs/*")
    assert read_json(folder / "result.json")["status"] == "failed"
    assert [path.name for path in folder.glob("resume/checkpoint-*")] == ["checkpoint-3"]
    assert called(spec, tmp_path / "out").exit_code == 1, "nothing is tried again unasked"
    assert called(spec, tmp_path / "out", "--retry-failed").exit_code == 0
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    assert measured(run_study(spec, tmp_path / "alone", workers=0).directory) == measured(tmp_path / "out")


# --- weights and texts that were not kept ----------------------------------------------------------


@pytest.fixture
def bare(copy: Path) -> Path:
    """A finished study as it is committed: results without weights, texts and page."""
    for path in [*copy.rglob("texts.json"), *copy.rglob("metrics.jsonl"), copy / "report.html"]:
        path.unlink(missing_ok=True)
    for path in copy.rglob("weights"):
        shutil.rmtree(path)
    return copy


def test_arms_and_seeds_are_added_to_results_without_weights_and_texts(
    serviced: dict[str, Any], bare: Path, tmp_path: Path
) -> None:
    more = {**serviced, "methods": [*serviced["methods"], {"kl": {"beta": 0.5}}], "seeds": [0, 1]}
    result = called(more, bare)
    assert result.exit_code == 0, result.output
    assert measured(run_study(more, tmp_path / "alone", workers=0).directory) == measured(bare)


def test_a_variant_of_weights_that_were_not_kept_is_planned_and_made_by_training_again(
    serviced: dict[str, Any], bare: Path, whole: Study, trainings: list[int]
) -> None:
    summary = (bare / "summary.json").read_bytes()
    labels, cost = planned({**serviced, "methods": MORE}, bare, 0)
    assert [label.split("  ")[1] for label in labels] == [
        "plain, seed 0: trained again, for weights that were not kept"
    ]
    assert cost.done == 0
    assert (bare / "summary.json").read_bytes() == summary
    result = called({**serviced, "methods": MORE}, bare)
    assert result.exit_code == 0, result.output
    assert trainings == [0]
    assert measured(bare) == measured(whole.directory)


def test_what_was_finished_stays_when_training_again_fails(
    serviced: dict[str, Any], bare: Path, whole: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    [folder] = bare.glob("runs/*")
    before = kept(folder)
    monkeypatch.setenv("SERVICE_DOWN", "1")
    assert called({**serviced, "methods": MORE}, bare).exit_code == 1
    assert {**kept(folder), "weights": {}} == before  # those that were made again meanwhile do no harm
    monkeypatch.delenv("SERVICE_DOWN")
    assert called({**serviced, "methods": MORE}, bare).exit_code == 0
    assert measured(bare) == measured(whole.directory)


def test_a_training_again_that_measures_otherwise_takes_the_place_of_the_first(
    serviced: dict[str, Any], bare: Path, whole: Study
) -> None:
    """Another machine rounds otherwise; points of two trainings are never mixed."""
    [folder] = bare.glob("runs/*")
    result = read_json(folder / "result.json")
    result["points"][0]["validation"]["drift"]["perplexity"] += 1e-6
    (folder / "result.json").write_text(json.dumps(result))
    assert called({**serviced, "methods": MORE}, bare).exit_code == 0
    assert measured(bare) == measured(whole.directory)
    assert any("measures otherwise than before" in line for line in read_json(bare / "summary.json")["caveats"])
