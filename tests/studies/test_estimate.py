"""What `--plan` says a study will cost, against what it then costs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from untaxed.measuring.planning import minimum_detectable
from untaxed.measuring.planning import planned as of_scores
from untaxed.studies import Study, run_study
from untaxed.studies.estimate import Estimate
from untaxed.studies.results import runs
from untaxed.studies.store import read_json, read_scores, write_json
from untaxed.studies.study import planned

SHARES = {"averaging": {"initial_share": {"sweep": [0.2, 0.4, 0.6]}}}
RESET = {"elastic_reset": {"decay": 0.5, "reset_every": 2}}


def plan(spec: dict[str, Any], out: Path, workers: int = 1) -> Estimate:
    return planned(spec, out, 0)[1] if workers == 1 else planned(spec, out, workers)[1]


def on_disk(out: Path) -> int:
    return sum(path.stat().st_size for path in out.rglob("model.safetensors"))


@pytest.fixture(scope="module")
def study(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run_study(world, tmp_path_factory.mktemp("estimate") / "out", workers=0)


@pytest.mark.parametrize("keep", [["last"], ["last", "best_proxy"], ["last", "all"]])
def test_disk_is_at_most_and_at_least_what_is_said(world: dict[str, Any], tmp_path: Path, keep: list[str]) -> None:
    spec = {**world, "keep": keep, "methods": [*world["methods"], RESET]}
    cost = plan(spec, tmp_path / "out")
    run_study(spec, tmp_path / "out", workers=0)
    there = on_disk(tmp_path / "out")
    assert there <= 1.05 * cost.disk_bytes  # headers of the files
    assert there >= cost.kept_bytes > 0


def test_keeping_less_takes_less_in_short_studies_too(world: dict[str, Any], tmp_path: Path) -> None:
    costs = {keep: plan({**world, "keep": ["last", keep]}, tmp_path / "out").kept_bytes for keep in ("last", "all")}
    assert costs["last"] < costs["all"]


def test_given_checkpoints_cost_nothing_and_each_variant_a_model(
    world: dict[str, Any], study: Study, tmp_path: Path
) -> None:
    [weights] = study.directory.glob("runs/*/weights/step-4")
    given = shutil.copytree(weights, tmp_path / "ckpt-4")
    spec = {k: v for k, v in world.items() if k not in ("algorithm", "seeds")} | {"methods": ["plain", SHARES]}
    spec |= {"models": {**world["models"], "aligned": [str(given)]}, "data": {"prompts": world["data"]["prompts"]}}
    cost = plan(spec, tmp_path / "out")
    run_study(spec, tmp_path / "out", workers=0)
    assert 0 < on_disk(tmp_path / "out") <= 1.05 * cost.disk_bytes
    assert cost.kept_bytes == 0


def test_a_reset_is_counted_on_both_sides(world: dict[str, Any], tmp_path: Path) -> None:
    assert plan({**world, "methods": ["plain"]}, tmp_path / "out").points == 2
    assert plan({**world, "methods": ["plain", RESET]}, tmp_path / "out").points == 3


def test_a_variant_more_is_estimated_as_a_variant(world: dict[str, Any], study: Study, tmp_path: Path) -> None:
    out = Path(shutil.copytree(study.directory, tmp_path / "out"))
    [run] = runs(out)
    # 100 s of training, and 20 s for each of the points and for the last one on test
    slow = {"train_seconds": 100.0, "seconds": 100.0 + 20.0 * (len(run["points"]) + 1)}
    path = out / "runs" / run["key"] / "result.json"
    write_json(path, {**read_json(path), **slow})
    cost = plan({**world, "methods": ["plain", SHARES]}, out)
    # two variants (of the last step and of the best one), measured on validation, and three of four chosen for test
    assert (cost.seconds, cost.points, cost.done) == (2 * 20.0 * 1.75, 2, 0)
    whole = plan({**world, "seeds": [0, 1]}, out)
    assert (whole.seconds, whole.points) == (100.0 + (2 + 4) * 20.0 * 1.75, 6)
    assert plan(world, out).seconds == 0


def test_a_plan_shows_what_items_can_show_from_validation_before_and_from_test_after(
    world: dict[str, Any], study: Study, tmp_path: Path
) -> None:
    before = plan(world, tmp_path / "out").detectable
    out = shutil.copytree(study.directory, tmp_path / "after")
    after = plan({**world, "seeds": [0, 1]}, Path(out)).detectable
    assert {row["split"] for row in before} == {"validation"}
    assert {row["split"] for row in after} == {"test"}
    scores = read_scores(Path(out) / "initial" / "scores.npz")
    about = read_json(Path(out) / "study.json")
    found = {row["what"]: row for row in after}
    for measure in (one for one in about["measures"] if one["group"] == "abilities"):
        row = found[measure["name"]]
        items = scores[f"initial/test/abilities.{measure['name']}"]
        assert row["items"] == len(items)
        if row["why"] is None:
            own = minimum_detectable(of_scores(measure["statistic"], items, chance=measure["chance"]))
            assert (row["loss"], row["tax"]) == (own.loss, own.tax)
        else:
            assert row["loss"] is None
