"""`untaxed measure --plan`: what would be done and what it can find, with no model loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from untaxed.cli import app
from untaxed.comparison import compare, measure, plan
from untaxed.errors import CheckpointError, SpecError
from untaxed.measuring.planning import items_needed, minimum_detectable, planned, worst_deviation
from untaxed.reporting import measured_plan
from untaxed.studies.store import read_scores


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(compare, "load_model", loaded)


def test_before_anything_is_measured_losses_are_those_of_the_worst_case(
    models: Path, suite: Path, tmp_path: Path, no_model: None
) -> None:
    found = plan([], models / "initial", suite, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    rows = {row["what"]: row for row in found["detectable"]}
    written, items = rows["written"], found["abilities"]["written"]
    count = sum(items.values())
    assert (written["from"], written["split"], written["items"]) == ("worst case", "all", count)
    assert written["loss"] == pytest.approx(2.8016 * worst_deviation() / count**0.5, rel=1e-4)
    assert written["tax"] is None
    assert [one["items"] for one in written["needed"]] == [items_needed(0.5, size) for size in (0.05, 0.02)]
    assert rows["select"]["tax"] is None
    assert found["initial"]["kept"] == []
    assert "drift.forward_kl" not in found["initial"]["to_measure"]


def test_once_initial_is_measured_they_are_from_its_scores(models: Path, suite: Path, tmp_path: Path) -> None:
    said: list[str] = []
    summary = measure([models / "near"], models / "initial", suite, tmp_path, say=said.append).summary
    digest = summary["initial"]["content"]
    found = plan([models / "near", models / "far"], models / "initial", suite, tmp_path)
    assert [len(one["to_measure"]) for one in (found["initial"], *found["models"])] == [0, 0, 5]
    row = next(row for row in found["detectable"] if row["what"] == "written")
    [scores] = [
        read_scores(file.with_suffix(".npz"))
        for file in (tmp_path / "scores").glob("scores-*.json")
        if (about := json.loads(file.read_text()))["measure"] == "abilities.written" and about["model"] == digest
    ]
    part = planned("mean", scores["test"])
    least = minimum_detectable(part)
    assert (row["from"], row["split"], row["items"]) == ("scores", "test", len(scores["test"]))
    assert (row["loss"], row["tax"]) == (least.loss, least.tax)
    for one in row["needed"]:
        assert one["loss"] == pytest.approx(one["tax"] * part.room)
        assert minimum_detectable(replace(part, items=one["items"])).tax <= one["tax"]
        assert minimum_detectable(replace(part, items=one["items"] - 1)).tax > one["tax"]
    # of one model all items count: its line stands between initial's measures and the model's
    both = next(row for row in plan([], models / "initial", suite, tmp_path)["detectable"] if row["what"] == "select")
    at = next(at for at, line in enumerate(said) if line.startswith("the least tax found in 80 % of cases"))
    assert f"{both['tax']:.3f}" in said[at]
    assert {line.split(":")[0] for line in said[1:at]} == {"initial"}
    assert {line.split(":")[0] for line in said[at + 1 :]} == {"near"}


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["measure", *map(str, words)])


def test_the_command(models: Path, suite: Path, tmp_path: Path, no_model: None) -> None:
    given = ("--initial", models / "initial", "--suite", suite, "--out", tmp_path / "out", "--plan")
    shown = run(*given)
    assert shown.exit_code == 0, shown.output
    assert "* Worst case: initial is not measured yet" in " ".join(shown.stdout.split())
    assert f"{models / 'initial'}: 4 of 4 measures to take" in " ".join(shown.stdout.split())
    assert json.loads(run(models / "far", *given, "--json").stdout)["models"][0]["name"] == "far"
    assert "not taken: forward_kl" in " ".join(run(models / "other", *given).stdout.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none", "--plan"], "no such folder"),
        (["--plan", "--csv"], "--plan prints a table, or JSON with --json"),
        ([], "name at least one model to measure"),
    ],
)
def test_what_is_given_wrongly_is_one_line(models: Path, suite: Path, words: list[str], message: str) -> None:
    result = run(*words, "--initial", models / "initial", "--suite", suite)
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert message in result.output


def test_models_are_checked_though_none_is_measured(models: Path, suite: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        plan([tmp_path / "none"], models / "initial", suite)
    with pytest.raises(SpecError, match="given 2 times"):
        plan([models / "far", models / "far"], models / "initial", suite)


def test_general_prompts_are_counted_beside_the_others(models: Path, tmp_path: Path) -> None:
    (tmp_path / "general.jsonl").write_text("".join(f'{{"prompt": "w{n}"}}\n' for n in range(20)))
    (tmp_path / "suite.yaml").write_text("general_prompts: {path: general.jsonl}\n")
    found = plan([models / "far"], models / "initial", tmp_path / "suite.yaml", tmp_path / "out")
    counts = found["general_prompts"]
    assert (found["prompts"], sum(counts.values())) == ({}, 20)
    said = f"prompts  {counts['validation']} validation and {counts['test']} test general prompts that each"
    assert any(line.startswith(said) for line in measured_plan.to_do(found))
