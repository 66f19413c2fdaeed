"""Warnings of ours inside a study: said once to whoever listens, kept in the runs' results, told in the report."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from untaxed import reporting
from untaxed.studies import run_study
from untaxed.studies.events import Event
from untaxed.studies.notes import each_warning_once, heard
from untaxed.studies.results import runs
from untaxed.studies.study import planned

TEXT = "grpo with beta 0: drift from the initial model is not part of training"


@pytest.fixture
def grpo(world: dict[str, Any]) -> dict[str, Any]:
    """A study of two runs, each of which warns."""
    sampling = {"max_steps": 2, "batch_size": 8, "num_generations": 2, "max_completion_length": 4}
    algorithm = {"name": "grpo", "learning_rate": 1e-3, "beta": 0.0, **sampling}
    data = {"prompts": world["data"]["prompts"]}
    return {**world, "algorithm": algorithm, "data": data, "methods": ["plain"], "seeds": [0, 1]}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_warning_is_said_once_a_study_and_kept(grpo: dict[str, Any], tmp_path: Path, workers: int) -> None:
    events: list[Event] = []
    study = run_study(grpo, tmp_path / "out", workers, events.append)
    assert [event.text for event in events if event.kind == "warning"] == [TEXT]
    assert [run["notes"] for run in runs(tmp_path / "out")] == [[TEXT], [TEXT]]
    line = f"Warning in 2 of 2 runs: {TEXT}."
    assert line in study.summary()["caveats"]
    assert line in reporting.markdown(study.summary())
    assert line in reporting.html(tmp_path / "out")
    run_study({**grpo, "seeds": [0]}, tmp_path / "out", 0)
    assert [run["notes"] for run in runs(tmp_path / "out")] == [[TEXT]], "a run that is done keeps its notes"


def test_a_plan_warns_too(grpo: dict[str, Any], tmp_path: Path) -> None:
    events: list[Event] = []
    planned(grpo, tmp_path / "out", 0, events.append)
    assert [event.text for event in events if event.kind == "warning"] == [TEXT]


def test_a_run_that_fails_keeps_its_notes(
    grpo: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from untaxed import training
    from untaxed.errors import RunFailed

    def failing(*_: Any, **__: Any) -> None:
        raise RunFailed("the loss is nan at step 1")

    monkeypatch.setattr(training, "train", failing)
    study = run_study(grpo, tmp_path / "out", 0)
    assert len(study.failed) == 2
    results = [json.loads(path.read_text()) for path in tmp_path.glob("out/runs/*/result.json")]
    assert [(run["status"], run["notes"]) for run in results] == [("failed", [TEXT])] * 2
    assert study.summary()["verdict"] == "No verdict: no run of plain is done."


def test_warnings_of_others_go_where_they_went() -> None:
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught, heard(said.append):
        warnings.simplefilter("always")
        warnings.warn("somebody else's", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["somebody else's"]
    assert said == []


def test_only_warnings_are_said_once() -> None:
    events: list[Event] = []
    listen = each_warning_once(events.append)
    for event in [Event("note", text="same"), Event("warning", "a", "same"), Event("warning", "b", "other")] * 2:
        listen(event)
    assert [(event.kind, event.text) for event in events] == [
        ("note", "same"),
        ("warning", "same"),
        ("warning", "other"),
        ("note", "same"),
    ]


@pytest.mark.parametrize(("every", "warned"), [(9, True), (4, True), (2, False)])
def test_nothing_to_stop_early_at_is_one_line(world: dict[str, Any], tmp_path: Path, every: int, warned: bool) -> None:
    events: list[Event] = []
    planned({**world, "measure": {**world["measure"], "every": every}}, tmp_path / "out", 0, events.append)
    line = (
        f"early_stopping has nothing to choose from: with measure.every {every} and 4 steps only the last step is"
        " measured; lower measure.every"
    )
    assert [event.text for event in events if event.kind == "warning"] == [line] * warned
    events.clear()
    spec = {**world, "methods": ["plain"], "measure": {**world["measure"], "every": every}}
    planned(spec, tmp_path / "out", 0, events.append)
    assert [event for event in events if event.kind == "warning"] == []
