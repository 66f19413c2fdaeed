"""A study with more than proxy and gold: shown, never chosen by, and no change to studies that have none of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import build_classifier_dir

from untaxed.errors import SpecError, StoreError
from untaxed.reporting.page import html
from untaxed.reporting.tables import arms_table
from untaxed.studies import Study, run_study
from untaxed.studies.results import runs
from untaxed.studies.store import read_json

NAMES = [
    "proxy", "proxy_at_equal_length", "short", "short_at_equal_length", "by_model", "by_model_at_equal_length",
    "held_out_accuracy", "held_out_margin", "held_out_chosen", "held_out_rejected",
]  # fmt: skip


@pytest.fixture(scope="module")
def spec(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    judge = build_classifier_dir(tmp_path_factory.mktemp("judge") / "model", seed=2)
    measure = {
        **world["measure"],
        "reward": {"proxy": {"reward_model": str(judge)}, "others": {"short": {"rules": [{"max_words": 3}]}}},
        "win_rates": {"by_model": {"reward": {"reward_model": str(judge)}}},
        "preferences": {"held_out": {"rows": world["data"]["preferences"], "limit": 10}},
        "length_controlled": True,
    }
    return {**world, "methods": ["plain"], "measure": measure}


@pytest.fixture(scope="module")
def study(spec: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run_study(spec, tmp_path_factory.mktemp("rewards") / "study", workers=0)


def test_all_are_measured_and_shown(study: Study) -> None:
    [run] = runs(study.directory)
    last = run["points"][-1]["test"]["reward"]
    assert [name for name in last if name != "gold"] == NAMES
    assert None not in [last[name] for name in NAMES]
    start = read_json(study.directory / "initial" / "result.json")["points"][0]["test"]["reward"]
    assert (start["by_model"], start["proxy_at_equal_length"], start["held_out_accuracy"]) == (0.5, 0.0, 0.5)
    summary = study.summary()
    titles = [column.title for column in arms_table(summary).columns]
    assert titles[-9:] == NAMES[1:]
    assert "held_out_margin" in html(study.directory)
    assert run["points"][-1]["test"]["reward"]["held_out_margin"] != 0


def test_another_reward_model_is_another_study(study: Study, spec: dict[str, Any]) -> None:
    judge = Path(spec["measure"]["reward"]["proxy"]["reward_model"])
    before = (judge / "model.safetensors").read_bytes()
    try:
        build_classifier_dir(judge, seed=3)
        with pytest.raises(StoreError, match=r"content of data.rewards.proxy"):
            run_study(spec, study.directory, workers=0)
    finally:
        (judge / "model.safetensors").write_bytes(before)


def test_a_study_asks_no_endpoint(world: dict[str, Any], tmp_path: Path) -> None:
    judge = {"judge": {"endpoint": "https://host/v1", "model": "m"}}
    measure = {**world["measure"], "win_rates": {"judged": judge}}
    with pytest.raises(SpecError, match=r"measure.win_rates.judged: a study asks no endpoint.*`untaxed measure`"):
        run_study({**world, "measure": measure}, tmp_path, workers=0)


def test_a_spec_without_them_reads_as_it_did(world: dict[str, Any]) -> None:
    from untaxed.studies.spec import StudySpec

    measure = StudySpec.model_validate(world).resolved()["measure"]
    assert not {"win_rates", "preferences", "length_controlled"} & set(measure)
    assert measure["reward"] == {"proxy": "tiny:reward"}
