"""Methods that learn or search after training, within a study: what is kept, what is not done twice, what it costs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from values import values

from untaxed.errors import SpecError
from untaxed.reporting import html
from untaxed.studies import Study, making, run_study
from untaxed.studies.results import runs
from untaxed.studies.study import planned

LEARNED = {"hma": {"initial_share": 0.4, "blocks": 2, "samples": 12, "kept": 8, "learning_rate": 0.1}}
SEARCHED = {"hma_search": {"blocks": 2, "evaluations": 6}}
COMPOSED = [{"ties": {"density": 0.5}}, {"hma": {**LEARNED["hma"], "initial_share": {"sweep": [0.2, 0.6]}}}]
METHODS = ["plain", LEARNED, SEARCHED, {"part_averaging": {"blocks": 2, "block": {"sweep": ["input", "output"]}}}]


class Killed(BaseException):
    """What no handler catches, as little as a kill."""


@pytest.fixture(scope="module")
def spec(world: dict[str, Any]) -> dict[str, Any]:
    return {**world, "methods": METHODS}


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry a model that a search measures."""
    seen: list[Any] = []
    inner = making.Judge.__call__
    monkeypatch.setattr(making.Judge, "__call__", lambda self: seen.append(self.model) or inner(self))
    return seen


@pytest.fixture(scope="module")
def study(spec: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run_study(spec, tmp_path_factory.mktemp("searching") / "first", workers=0)


def found_files(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(directory.glob("runs/*/made/*/*/found.json"))]


def test_what_was_found_stands_in_result_and_summary_and_folder(study: Study) -> None:
    [run] = runs(study.directory)
    found = {point["name"]: point["found"] for point in run["points"] if "found" in point}
    assert {name.split("-")[0] for name in found} == {"hma", "hma_search"}
    for name, [one] in found.items():
        assert list(one["ratios"]) == ["layer 0", "layer 1"]
        assert one["method"] == name.split("-")[0]
        assert "steps" not in one
    learned = [one for name, [one] in found.items() if name.startswith("hma-")]
    assert all(sum(one["ratios"].values()) / 2 == pytest.approx(0.4) for one in learned)
    [searched] = [one for name, [one] in found.items() if name.startswith("hma_search") and name.endswith("@last")]
    assert searched["evaluations"] == 6
    assert searched["values"]["reward"] >= searched["goal"]["reward_at_least"]
    points = [point for arm in study.summary()["arms"] if arm["arm"] == "hma_search" for point in arm["points"]]
    assert {"0": [searched]} in [point["found"] for point in points]
    kept = {json.dumps(one["ratios"]) for one in found_files(study.directory)}
    assert kept == {json.dumps(one["ratios"]) for [one] in found.values()}
    assert any("steps" in one for one in found_files(study.directory))
    assert not study.failed


def test_a_search_measures_as_the_study_does(study: Study) -> None:
    """The aligned model and the chosen average, by the search and by their own points."""
    [run] = runs(study.directory)
    points = {point["name"]: point for point in run["points"]}
    name = next(name for name in points if name.startswith("hma_search") and name.endswith("@last"))
    [found] = points[name]["found"]
    for point, one in ((points["step-4"], found["aligned"]), (points[name], found["values"])):
        assert one["reward"] == point["validation"]["reward"]["proxy"]
        assert one["abilities"] == {"one": point["validation"]["abilities"]["one"]}
    initial = json.loads((study.directory / "initial" / "result.json").read_text())["points"][0]["validation"]
    assert found["values"]["initial_reward"] == initial["reward"]["proxy"]
    kept = found["values"]["abilities"]["one"] / initial["abilities"]["one"]  # chance is 0
    assert found["values"]["tax"] == pytest.approx(1 - kept)


def test_a_test_of_what_was_chosen_searches_nothing_again(
    spec: dict[str, Any], tmp_path: Path, judged: list[Any]
) -> None:
    study = run_study({**spec, "methods": ["plain", SEARCHED], "keep": ["last"]}, tmp_path, workers=0)
    [run] = runs(study.directory)
    [point] = [point for point in run["points"] if point["variant"]]
    assert point["test"] is not None
    assert len(judged) == 1 + 6


def test_a_killed_search_goes_on_where_it_was(
    spec: dict[str, Any], tmp_path: Path, judged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {**spec, "methods": ["plain", SEARCHED], "keep": ["last"]}
    inner = making.Judge.__call__

    def deadly(self: making.Judge) -> dict[str, Any]:
        if len(judged) == 4:
            raise Killed
        return inner(self)

    with monkeypatch.context() as patch:
        patch.setattr(making.Judge, "__call__", deadly)
        with pytest.raises(Killed):
            run_study(spec, tmp_path / "killed", workers=0)
    [log] = (tmp_path / "killed").glob("runs/*/made/*/*/evaluations.jsonl")
    assert len(log.read_text().splitlines()) == 1 + 3  # its problem, and three averages
    judged.clear()
    killed = run_study(spec, tmp_path / "killed", workers=0)
    assert len(judged) == 1 + 3
    untouched = run_study(spec, tmp_path / "untouched", workers=0)
    assert values(killed.directory) == values(untouched.directory)
    ratios = [[one["ratios"] for one in found_files(study.directory)] for study in (killed, untouched)]
    assert ratios[0] == ratios[1]


def test_composed_arms_learn_on_what_came_before(world: dict[str, Any], tmp_path: Path) -> None:
    methods = ["plain", LEARNED, COMPOSED]
    study = run_study({**world, "methods": methods, "keep": ["last"]}, tmp_path, workers=0)
    assert not study.failed
    [run] = runs(study.directory)
    means = {
        point["name"].split("@")[0].rpartition("-")[0]: sum(one["ratios"].values()) / 2
        for point in run["points"]
        for one in point.get("found", [])
    }
    assert means == pytest.approx({"hma-0.4": 0.4, "ties-0.5-1.0+hma-0.2": 0.2, "ties-0.5-1.0+hma-0.6": 0.6})


def test_what_was_found_for_a_merge_holds_for_these_very_trainings(world: dict[str, Any], tmp_path: Path) -> None:
    """A member that was trained again elsewhere may differ in its last bits, and so may the merge."""
    spec = {**world, "methods": ["plain", [{"model_stock": {"members": 2}}, LEARNED]], "keep": ["last"]}
    study = run_study(spec, tmp_path, workers=0)
    assert not study.failed
    [merged] = [run for run in runs(tmp_path) if len(run["points"]) > 2]
    [member] = [run for run in runs(tmp_path) if run.get("member")]
    result = tmp_path / "runs" / merged["key"] / "result.json"
    shutil.copy(
        Path(world["models"]["initial"]) / "model.safetensors",
        tmp_path / "runs" / member["key"] / "weights" / "step-4" / "model.safetensors",
    )
    points = [point for point in merged["points"] if point["variant"] is None]
    for _ in range(2):
        result.write_text(json.dumps({**merged, "points": points}))
        run_study(spec, tmp_path, workers=0)
    before, now = found_files(tmp_path)  # in any order; found twice and not three times
    assert before["ratios"] != now["ratios"]


def test_given_checkpoints_are_searched_without_training(study: Study, spec: dict[str, Any], tmp_path: Path) -> None:
    [run] = runs(study.directory)
    weights = study.directory / "runs" / run["key"] / "weights" / "step-4"
    given = {k: v for k, v in spec.items() if k not in ("algorithm", "seeds")}
    given |= {"models": {**spec["models"], "aligned": [str(shutil.copytree(weights, tmp_path / "ckpt-4"))]}}
    given["data"] = {"prompts": spec["data"]["prompts"]}
    judged = run_study(given, tmp_path / "out", workers=0)
    assert not judged.failed
    [other] = runs(judged.directory)
    before = {point["name"]: point for point in run["points"]}
    for point in other["points"]:
        if point["name"].endswith("@last"):
            assert point["validation"] == before[point["name"]]["validation"]
            assert [one["ratios"] for one in point.get("found", [])] == [
                one["ratios"] for one in before[point["name"]].get("found", [])
            ]


def test_the_plan_counts_what_a_search_measures(spec: dict[str, Any], tmp_path: Path) -> None:
    with_search = planned({**spec, "methods": ["plain", SEARCHED]}, tmp_path, 0)[1]
    without = planned({**spec, "methods": ["plain", {"averaging": {"initial_share": 0.2}}]}, tmp_path, 0)[1]
    assert (with_search.searched, without.searched) == (2 * 7, 0)  # of the last and of the best checkpoint
    assert with_search.points == without.points


@pytest.mark.parametrize(
    "method", [{"hma": {"initial_share": 0.2}}, "hma_search", {"part_averaging": {"block": "input"}}], ids=str
)
def test_more_blocks_than_layers_are_refused_before_anything_is_written(
    method: Any, spec: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match="blocks must be between 1 and the model's 2 layers, got 3"):
        run_study({**spec, "methods": ["plain", method]}, tmp_path / "out", workers=0)
    assert not (tmp_path / "out").exists()


def test_the_page_shows_the_shares_of_blocks_and_the_parts(study: Study) -> None:
    page = html(study.directory)
    assert "Shares of initial, block by block" in page
    assert "layer 1" in page
    assert "Part by part" in page
