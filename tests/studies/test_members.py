"""Variants of several trainings: which runs they take, what they are made of, and what happens when one is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result
from values import values

from untaxed import training
from untaxed.checkpoints import load_weights
from untaxed.cli import app
from untaxed.errors import RunFailed
from untaxed.merging import average, model_stock, warp
from untaxed.studies import Study, load_results, run_study, variants
from untaxed.studies.arms import member_seed
from untaxed.studies.results import runs
from untaxed.studies.store import read_json
from untaxed.studies.study import planned

STOCK = {"model_stock": {"members": 2}}
WARPED = {"warp": {"members": 3, "initial_share": 0.2}}
COMPOSED = [{"averaging": {"initial_share": 0.3}}, STOCK]
RESET = {"elastic_reset": {"decay": 0.5, "reset_every": 2}}
ARMS = ["plain", STOCK, WARPED, COMPOSED]
FIRST, SECOND = member_seed(0, 1), member_seed(0, 2)


@pytest.fixture(scope="module")
def spec(world: dict[str, Any]) -> dict[str, Any]:
    return {**world, "methods": ARMS}


@pytest.fixture(scope="module")
def study(spec: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run_study(spec, tmp_path_factory.mktemp("members") / "whole", workers=0)


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


@pytest.fixture
def broken_member(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training of the second member stops with a loss that is not a number."""
    train = training.train

    def failing(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        if trainer.args.seed == SECOND:
            raise RunFailed("the loss is nan at step 3; lower learning_rate")
        return train(trainer, *args, **kwargs)

    monkeypatch.setattr(training, "train", failing)


def called(spec: dict[str, Any], out: Path, *words: str, workers: int = 0) -> Result:
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(spec))
    return CliRunner().invoke(app, ["study", str(path), "--out", str(out), "--workers", str(workers), *words])


def by_seed(directory: Path) -> dict[int, dict[str, Any]]:
    return {run["seed"]: run for run in runs(directory)}


def measured(out: Path) -> dict[Any, Any]:
    """What was measured along the way; which points are tested too depends on what there was to choose from."""
    return {(point["run"], point["name"]): point["validation"] for point in load_results(out)}


# --- what is trained, and what is made of it --------------------------------------------------------------------------


def test_members_are_runs_beside_those_of_the_seeds(study: Study) -> None:
    found = by_seed(study.directory)
    assert set(found) == {0, FIRST, SECOND}
    assert "member" not in found[0]
    assert [found[seed]["member"] for seed in (FIRST, SECOND)] == [{"seed": 0, "number": n} for n in (1, 2)]
    assert all(point["variant"] is None for seed in (FIRST, SECOND) for point in found[seed]["points"])
    names = [point["name"] for point in found[0]["points"]]
    assert {"model_stock-2@last", "warp-3-0.2@best_proxy", "averaging-0.3+model_stock-2@last"} <= set(names)


def test_members_are_no_points_of_an_arm_and_their_cost_is_the_arms(study: Study) -> None:
    summary, found = study.summary(), by_seed(study.directory)
    assert summary["seeds"] == 1
    arms = {arm["arm"]: arm for arm in summary["arms"]}
    assert {name: (arm["runs"], arm["members"]) for name, arm in arms.items()} == {
        **{"plain": (1, 1), "model_stock": (2, 2), "warp": (3, 3), "averaging + model_stock": (2, 2)}
    }
    spent = [found[seed]["train_seconds"] for seed in (0, FIRST, SECOND)]
    for name, count in (("plain", 1), ("model_stock", 2), ("warp", 3)):
        assert arms[name]["seconds"]["mean"] == pytest.approx(sum(spent[:count]))
        assert arms[name]["seconds"]["n"] == 1
    assert arms["plain"]["settings"] == 2
    assert {point["seed"] for point in load_results(study.directory)} == {None, 0}
    assert "warp trains 3 runs for every seed: its cost is 3 times that of one run." in summary["caveats"]


@pytest.mark.parametrize("of", ["last", "best_proxy"])
def test_a_variant_is_made_of_the_same_kind_of_checkpoint_of_each(
    study: Study, tiny_initial: Path, spec: dict[str, Any], of: str
) -> None:
    from untaxed.studies.bench import prepare
    from untaxed.studies.points import Points
    from untaxed.studies.spec import parse_spec
    from untaxed.studies.store import Store

    bench, store, found = prepare(parse_spec(spec)), Store(study.directory), by_seed(study.directory)
    initial, trained = load_weights(tiny_initial), []
    for seed in (0, FIRST, SECOND):
        points = Points(found[seed]["points"])
        place = points.get(points.kept(of))["weights"]
        trained.append(load_weights(study.directory / "runs" / found[seed]["key"] / place))
    back = [average(initial, one, initial_share=0.3) for one in trained[:2]]
    run, points = bench.runs[found[0]["key"]], Points(found[0]["points"])
    for after in run.variants:
        model = variants._variant_model(bench, store, run, variants.sources(store, run, points, after, of), after)[0]
        for name, tensor in model.named_parameters():
            if after[-1].name == "warp":
                expected = warp([one[name] for one in trained], initial[name], initial_share=0.2)
            else:
                expected = model_stock([one[name] for one in (trained[:2], back)[len(after) - 1]], initial[name])
            torch.testing.assert_close(tensor.detach(), expected, rtol=0, atol=0)


def test_every_training_part_has_members_of_its_own(
    world: dict[str, Any], tmp_path: Path, trainings: list[int]
) -> None:
    study = run_study({**world, "methods": ["plain", [RESET, STOCK]]}, tmp_path, workers=0)
    assert not study.failed
    assert sorted(trainings) == sorted([0, 0, FIRST])
    [member] = [run for run in runs(tmp_path) if "member" in run]
    assert member["methods"][0]["method"] == "elastic_reset"
    [point] = [p for p in load_results(tmp_path) if p["name"] == "model_stock-2@last"]
    assert point["methods"][0]["method"] == "elastic_reset"


# --- going on ------------------------------------------------------------------------------------------------------


def test_an_arm_that_is_added_trains_only_the_members_that_are_missing(
    world: dict[str, Any], spec: dict[str, Any], study: Study, tmp_path: Path, trainings: list[int]
) -> None:
    for methods, new in (
        (["plain"], [0]),
        (["plain", STOCK], [FIRST]),
        (["plain", STOCK, WARPED], [SECOND]),
        (ARMS, []),
    ):
        trainings.clear()
        run_study({**world, "methods": methods}, tmp_path, workers=0)
        assert trainings == new
    assert measured(tmp_path) == measured(study.directory)
    about = read_json(tmp_path / "study.json")
    assert about["aside"] == []
    run_study({**world, "methods": ["plain", STOCK]}, tmp_path, workers=0)
    aside = read_json(tmp_path / "study.json")["aside"]
    assert by_seed(study.directory)[SECOND]["key"] in [piece["key"] for piece in aside]


def test_a_finished_study_does_nothing_again(spec: dict[str, Any], copy: Path, trainings: list[int]) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*.json")}
    heard: list[Any] = []
    run_study(spec, copy, workers=0, progress=heard.append)
    assert [event.key for event in heard if event.kind == "plan"] == []
    assert {path: path.read_bytes() for path in copy.rglob("*.json")} == before


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


@pytest.mark.parametrize("calls", [1, 3, 9, 11])
def test_a_study_killed_over_its_variants_ends_as_an_unkilled_one(
    study: Study, spec: dict[str, Any], tmp_path: Path, calls: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        inner, counted = variants.measure, [0]

        def counting(*args: Any) -> Any:
            counted[0] += 1
            if counted[0] > calls:
                raise Killed
            return inner(*args)

        patch.setattr(variants, "measure", counting)
        with pytest.raises(Killed):
            run_study(spec, tmp_path, workers=0)
    run_study(spec, tmp_path, workers=0)
    assert values(tmp_path) == values(study.directory)


def test_workers_make_what_one_process_makes(study: Study, spec: dict[str, Any], tmp_path: Path) -> None:
    assert not run_study(spec, tmp_path, workers=2).failed
    assert values(tmp_path) == values(study.directory)


def test_weights_of_a_member_that_are_gone_are_made_by_training_it_again(
    spec: dict[str, Any], study: Study, copy: Path, trainings: list[int]
) -> None:
    member = by_seed(copy)[FIRST]["key"]
    shutil.rmtree(copy / "runs" / member / "weights")
    more = {**spec, "methods": [*ARMS, {"warp": {"members": 2, "initial_share": 0.5}}]}
    labels, cost = planned(more, copy, 0)
    assert len(labels) == cost.runs - cost.done == 2
    assert f"{member}  plain, seed 0, member 1: trained again, for weights that were not kept" in labels
    assert not run_study(more, copy, workers=0).failed
    assert trainings == [FIRST]
    assert "warp-2-0.5@last" in [point["name"] for point in by_seed(copy)[0]["points"]]
    before = measured(study.directory)
    assert {place: value for place, value in measured(copy).items() if place in before} == before


# --- members that fail -----------------------------------------------------------------------------------------------


def test_a_member_that_fails_is_one_note_and_its_variants_are_lacking(
    spec: dict[str, Any],
    study: Study,
    tmp_path: Path,
    broken_member: None,
    monkeypatch: pytest.MonkeyPatch,
    trainings: list[int],
) -> None:
    out = tmp_path / "out"
    result = called(spec, out)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    key = by_seed(study.directory)[SECOND]["key"]
    assert f"failed: run {key}, seed 0, member 2: the loss is nan at step 3; lower learning_rate" in result.stderr
    line = (
        f"warp-3-0.2@last, warp-3-0.2@best_proxy could not be measured: member 2, run {key}, failed;"
        " --retry-failed trains it again."
    )
    assert sum(line in text for text in result.stderr.splitlines()) == 2  # as it happens, and at the end
    assert "seed 0, member 2: the loss is nan" in (out / "report.html").read_text()
    summary = read_json(out / "summary.json")
    lengths = {arm["arm"]: (arm["settings"], arm["seconds"]["n"]) for arm in summary["arms"]}
    assert lengths["warp"] == (0, 0)
    assert lengths["model_stock"] == (2, 1)
    trainings.clear()
    labels, cost = planned(spec, out, 0)
    assert (labels, cost.done, cost.failed) == ([], 2, 1)
    again = called(spec, out)
    assert again.exit_code == 1
    assert line in again.stderr
    assert trainings == []
    monkeypatch.undo()
    assert called(spec, out, "--retry-failed").exit_code == 0
    assert measured(out) == measured(study.directory)


def test_a_worker_that_dies_over_a_merge_takes_nothing_else(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = tmp_path / "order"
    monkeypatch.setenv("DEADLY", str(order))
    measure = {**world["measure"], "reward": {"proxy": "study_rewards:deadly"}}
    spec = {**world, "measure": measure, "methods": ["plain", {"averaging": {"initial_share": 0.2}}, STOCK]}
    order.write_text("1000")
    assert called({**spec, "methods": spec["methods"][:2]}, tmp_path / "out", workers=1).exit_code == 0
    order.write_text("3")  # the member's two steps, the second on both splits; then the merge
    result = called(spec, tmp_path / "out", workers=1)
    assert result.exit_code == 1, result.output
    line = "model_stock-2@last, model_stock-2@best_proxy could not be measured: the worker died, killed by SIGKILL"
    assert line in result.stderr
    main = by_seed(tmp_path / "out")[0]
    assert [one["name"] for one in main["lacking"]] == ["model_stock-2@last", "model_stock-2@best_proxy"]
    assert "averaging-0.2@last" in [point["name"] for point in main["points"]]
    assert called(spec, tmp_path / "out").exit_code == 0
    assert measured(run_study(spec, tmp_path / "alone", workers=0).directory) == measured(tmp_path / "out")


# --- plans and what is refused -----------------------------------------------------------------------------------


def test_members_are_planned_like_all_runs(spec: dict[str, Any], study: Study, copy: Path, tmp_path: Path) -> None:
    labels, cost = planned(spec, tmp_path / "new", 0)
    assert cost.runs == 3
    assert [label.split("  ")[1] for label in labels] == [
        "plain, seed 0",
        *(f"plain, seed 0, member {n}" for n in (1, 2)),
    ]
    assert cost.points == 2 + 2 * 3
    key = by_seed(copy)[SECOND]["key"]
    shutil.rmtree(copy / "runs" / key)
    labels, _ = planned(spec, copy, 0)
    assert labels == [f"{key}  plain, seed 0, member 2"]
    result = CliRunner().invoke(app, ["align", str(_written(spec, tmp_path)), "--run", key, "--out", str(copy)])
    assert result.exit_code == 0, result.output
    assert not run_study(spec, copy, workers=0).failed
    assert values(copy) == values(study.directory)


def _written(spec: dict[str, Any], folder: Path) -> Path:
    path = folder / "spec.yaml"
    path.write_text(json.dumps(spec))
    return path


def test_given_checkpoints_have_no_members(world: dict[str, Any], tmp_path: Path) -> None:
    spec = {k: v for k, v in world.items() if k not in ("algorithm", "seeds")} | {"methods": ["plain", STOCK]}
    spec["models"] = {**world["models"], "aligned": [world["models"]["initial"]]}
    result = called(spec, tmp_path / "out")
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()[-1:]
    assert "model_stock merges 2 trainings, and given checkpoints belong to one; merge those of several" in line
    assert not (tmp_path / "out").exists()


def test_one_member_is_refused_in_one_line(spec: dict[str, Any], tmp_path: Path) -> None:
    result = called({**spec, "methods": [{"model_stock": {"members": 1}}]}, tmp_path / "out")
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert "methods.0.model_stock: members must be at least 2, got 1: one training leaves nothing to merge" in line
    assert not (tmp_path / "out").exists()
