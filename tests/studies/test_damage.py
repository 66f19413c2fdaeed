"""Damage inside a study's directory: one line that names the file and the way out; what a kill left is mended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result
from values import values

from untaxed import frontier, reporting
from untaxed.cli import app
from untaxed.studies import Study, load_results, run_study
from untaxed.studies.estimate import tally
from untaxed.studies.results import runs
from untaxed.studies.store import read_json, read_scores, write_json
from untaxed.studies.summary import summary_of

WRONG = ["{}", "[]", "null", "3", '"text"', '{"points": {}}', '{"points": [{"name": 1}]}', '{"half": ']


@pytest.fixture(scope="module")
def study(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run_study(world, tmp_path_factory.mktemp("damage") / "whole", workers=0)


@pytest.fixture
def copy(study: Study, tmp_path: Path) -> Path:
    """The finished study, to be damaged; its summary is gone, so that a report reads the results."""
    shutil.copytree(study.directory, tmp_path / "out")
    (tmp_path / "out" / "summary.json").unlink()
    return tmp_path / "out"


def resumed(world: dict[str, Any], out: Path) -> Result:
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(world))
    return CliRunner().invoke(app, ["study", str(path), "--out", str(out), "--workers", "0"])


def reported(world: dict[str, Any], out: Path) -> Result:
    return CliRunner().invoke(app, ["report", str(out), "--html", str(out.with_suffix(".html"))])


def assert_refused(result: Result, *parts: str) -> None:
    """The last line names the file, says what is wrong and the remedy; there is no traceback."""
    assert result.exit_code == 2, (result.output, result.exception)
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    for part in parts:
        assert part in line
    assert sum(text.startswith("error: ") for text in result.stderr.splitlines()) == 1


@pytest.mark.parametrize("content", WRONG)
@pytest.mark.parametrize("call", [resumed, reported])
def test_json_of_another_shape_is_named(
    world: dict[str, Any], copy: Path, content: str, call: Callable[..., Result]
) -> None:
    [run] = runs(copy)
    for path in (copy / "runs" / run["key"] / "result.json", copy / "initial" / "result.json"):
        whole = path.read_bytes()
        path.write_text(content)
        assert_refused(call(world, copy), str(path), f"remove {path.parent}, the study makes it again")
        path.write_bytes(whole)
    (copy / "study.json").write_text(content)
    assert_refused(call(world, copy), str(copy / "study.json"), "put a copy of it back, or name another directory")


@pytest.mark.parametrize("content", ["[]", "{}", '{"verdict": ', '{"arms": 3}'])
def test_a_summary_of_another_shape_is_named(world: dict[str, Any], copy: Path, content: str) -> None:
    (copy / "summary.json").write_text(content)
    assert_refused(reported(world, copy), str(copy / "summary.json"), "remove it, it is made again")
    assert resumed(world, copy).exit_code == 0
    assert read_json(copy / "summary.json")["arms"]


def test_scores_that_lack_what_a_point_needs_are_named(world: dict[str, Any], copy: Path) -> None:
    path = copy / "initial" / "scores.npz"
    one_row = {"initial/test/abilities.one": np.ones(30)}
    for damage in ({}, one_row, {"initial/test/abilities.one": np.array([["text"]])}):
        np.savez(path, **damage)
        for call in (reported, resumed):
            assert_refused(call(world, copy), str(path), f"remove {path.parent}, the study makes it again")
    path.unlink()
    assert_refused(reported(world, copy), str(path), "the study makes it again")


def damaged_points(run: dict[str, Any]) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    first, *rest = run["points"]
    bare = {**first, "validation": {**first["validation"], "abilities": {"one": 0.5}}}
    return {
        "none": ("points: there is none of the training of a run that is done", []),
        "only variants": ("points: there is none of the training", [point for point in rest if point["variant"]]),
        "twice": ("points: step-2 stands there 2 times", [first, first, *rest]),
        "an ability less": ("step-2 has no abilities.two on validation", [bare, *rest]),
    }


@pytest.mark.parametrize("call", [resumed, reported])
def test_points_that_a_study_does_not_write_are_named_and_nothing_is_removed(
    world: dict[str, Any], copy: Path, call: Callable[..., Result]
) -> None:
    [run] = runs(copy)
    folder = copy / "runs" / run["key"]
    weights = set(folder.glob("weights/*"))
    more = {**world, "methods": ["plain", {"averaging": {"initial_share": 0.4}}]}
    cases = [(said, {**run, "points": points}) for said, points in damaged_points(run).values()]
    cases.append(("is the result of run 0123456789ab, not of this one", {**run, "key": "0123456789ab"}))
    for said, content in cases:
        write_json(folder / "result.json", content)
        assert_refused(
            call(more, copy), str(folder / "result.json"), said, f"remove {folder}, the study makes it again"
        )
        assert read_json(folder / "result.json") == content
        assert set(folder.glob("weights/*")) == weights


@pytest.mark.parametrize("call", [resumed, reported])
def test_scores_that_do_not_agree_with_the_rest_are_named(
    world: dict[str, Any], copy: Path, call: Callable[..., Result]
) -> None:
    [run] = runs(copy)
    path = copy / "runs" / run["key"] / "scores.npz"
    scores, name = read_scores(path), "step-2/validation/abilities.one"
    nan = scores[name].copy()
    nan[3] = np.nan
    for damage, said in [
        (scores[name][:-1], f"{name} is of shape (29, 1), the initial model's are (30, 1)"),
        (np.repeat(scores[name], 2, axis=1), f"{name} is of shape (30, 2)"),
        (nan, f"{name} has a value that is no number"),
    ]:
        np.savez(path, **{**scores, name: damage})
        assert_refused(call(world, copy), str(path), said, f"remove {path.parent}, the study makes it again")


def test_a_damaged_result_takes_no_summary_with_it(world: dict[str, Any], study: Study, tmp_path: Path) -> None:
    """Not even where the spec has changed: nothing is removed before the study knows that it can go on."""
    out = Path(shutil.copytree(study.directory, tmp_path / "out"))
    [path] = out.glob("runs/*/scores.npz")
    path.write_bytes(b"garbage")
    before = {name: (out / name).read_bytes() for name in ("study.json", "summary.json")}
    assert_refused(resumed({**world, "seeds": [0, 1]}, out), str(path))
    assert {name: (out / name).read_bytes() for name in before} == before


@pytest.mark.parametrize(("version", "said"), [("1", "'1' (a str)"), (1.0, None), (2, "2"), (None, "None")])
def test_another_version_is_named_with_its_type(world: dict[str, Any], copy: Path, version: Any, said: str) -> None:
    about = read_json(copy / "study.json")
    (copy / "study.json").write_text(json.dumps({**about, "version": version}))
    if said is None:
        assert reported(world, copy).exit_code == 0
    else:
        assert_refused(reported(world, copy), f"study.json: is of version {said}, this is 1; use another directory")


def test_the_remedy_that_is_named_works(world: dict[str, Any], study: Study, copy: Path) -> None:
    [run] = runs(copy)
    (copy / "runs" / run["key"] / "texts.json").write_text("[]")
    assert_refused(reported(world, copy), "texts.json: is not what a study writes there")
    shutil.rmtree(copy / "runs" / run["key"])
    shutil.rmtree(copy / "initial")
    assert resumed(world, copy).exit_code == 0
    assert values(copy) == values(study.directory)


@pytest.mark.parametrize("name", ["progress.npz", "progress.json"])
@pytest.mark.parametrize("content", ["garbage", "[]", "{}"])
def test_damaged_progress_names_the_remedy(world: dict[str, Any], copy: Path, name: str, content: str) -> None:
    [run] = runs(copy)
    folder = copy / "runs" / run["key"]
    (folder / "result.json").unlink()
    (folder / "scores.npz").rename(folder / "progress.npz")
    texts = read_json(folder / "texts.json")
    progress = {"points": run["points"][:1], "texts": texts, "seconds": 1.0, "outcome": None, "notes": []}
    write_json(folder / "progress.json", progress)
    (folder / name).write_text(content)
    assert_refused(resumed(world, copy), str(folder / name), f"remove {folder}, the study makes it again")


# --- what a kill left ------------------------------------------------------------------------------------------------


def test_a_kill_within_a_replace_and_within_pruning_is_mended(world: dict[str, Any], study: Study, copy: Path) -> None:
    """Weights moved aside with nothing in their place come back; those that no result names any more go."""
    [run] = runs(copy)
    weights = copy / "runs" / run["key"] / "weights"
    before = {path.name for path in weights.iterdir()}
    shutil.copytree(weights / "step-4", weights / ".step-4.k1_x2.partial")
    (weights / "step-4").rename(weights / ".step-4.k1_x2.old")
    shutil.copytree(weights / ".step-4.k1_x2.old", weights / "step-3")
    made = run_study(world, copy, workers=0)
    assert {path.name for path in weights.iterdir()} == before
    assert values(made.directory) == values(study.directory)
    assert {path.name for path in (study.directory / "runs" / run["key"] / "weights").iterdir()} == before


# --- a spec that names less ------------------------------------------------------------------------------------------


def measured(out: Path) -> dict[Any, Any]:
    """What was measured along the way; on test more may follow, as fewer seeds choose otherwise."""
    return {(point["run"], point["name"]): point["validation"] for point in load_results(out)}


def test_what_leaves_the_spec_is_said_and_comes_back_as_it_was(world: dict[str, Any], tmp_path: Path) -> None:
    share, reset = {"averaging": {"initial_share": {"sweep": [0.2, 0.6]}}}, {"kl": {"beta": 0.5}}
    whole = {**world, "methods": ["plain", share, reset], "seeds": [0, 1]}
    assert resumed(whole, tmp_path / "out").exit_code == 0
    before = measured(tmp_path / "out")
    less = {**world, "methods": ["plain", {"averaging": {"initial_share": 0.2}}], "seeds": [0]}
    line = (
        "seed 1, arm averaging initial_share=0.6, arm kl: in the directory and not in the spec;"
        " results kept on disk, left out of the report"
    )
    for _ in range(2):  # the second time study.json holds the lesser spec already
        result = resumed(less, tmp_path / "out")
        assert result.exit_code == 0, result.output
        said = [text for text in result.stderr.splitlines() if "not in the spec" in text]
        assert said == [line]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["seeds"], [arm["arm"] for arm in summary["arms"]]) == (1, ["plain", "averaging"])
    assert any("arm kl" in caveat for caveat in summary["caveats"])
    assert len(runs(tmp_path / "out")) == 1
    page = tmp_path / "out" / "report.html"
    assert "<dd>1 done</dd>" in page.read_text()
    assert len(list(tmp_path.glob("out/runs/*/result.json"))) == 4
    again = resumed(whole, tmp_path / "out")
    assert "4 runs: 4 done" in again.stderr
    assert "not in the spec" not in again.stderr
    assert measured(tmp_path / "out") == before


# --- a study that is not finished ------------------------------------------------------------------------------------


def test_what_an_unfinished_study_has_so_far_is_said_to_be_that(world: dict[str, Any], copy: Path) -> None:
    [run] = runs(copy)
    path = copy / "runs" / run["key"] / "result.json"
    untested = [{**point, "test": None} for point in run["points"]]
    write_json(path, {**run, "points": untested})
    so_far = summary_of(copy)
    assert so_far["unfinished"] == "what validation chose has yet to be measured on test"
    assert so_far["verdict"] == "No verdict yet: plain's shipping point was not measured on test."
    path.unlink()
    so_far = summary_of(copy)
    assert (so_far["unfinished"], so_far["verdict"]) == ("0 of 1 run done", "No verdict yet: no run of plain is done.")
    assert "<strong>Unfinished:</strong> 0 of 1 runs are complete." in reporting.html(copy, so_far)


@pytest.mark.parametrize(
    ("sentence", "so_far"),
    [
        ("No verdict: there is no plain arm.", "No verdict yet: there is no plain arm."),
        ("Nothing beats early stopping.", "So far, nothing beats early stopping."),
        ("kl beats early stopping.", "So far, kl beats early stopping."),
    ],
)
def test_a_verdict_before_the_end(sentence: str, so_far: str) -> None:
    assert frontier.so_far(sentence) == so_far


def test_a_run_that_failed_is_not_counted_as_done() -> None:
    assert tally(1, 0, 0) == "1 run: 1 done"
    assert tally(0, 1, 0) == "1 run: 1 failed"
    assert tally(3, 1, 2) == "6 runs: 3 done, 1 failed, 2 to do"
