"""The data that only some methods read: their rows, and what they do to runs and to a study's directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from untaxed.errors import DataError, SpecError, StoreError
from untaxed.method import Method
from untaxed.sites import Context, Need
from untaxed.studies import record
from untaxed.studies.arms import ArmPlan, SettingPlan, check_arms, run_key
from untaxed.studies.bench import prepare
from untaxed.studies.inputs import read_inputs
from untaxed.studies.sources import DataSpec
from untaxed.studies.spec import parse_spec
from untaxed.studies.store import Store


@dataclass(frozen=True)
class Reading(Method):
    name: ClassVar[str] = "reading"
    acts = frozenset({"loss"})
    needs: ClassVar[frozenset[Need]] = frozenset({"replay", "general_prompts"})


def written(directory: Path, name: str, *rows: Mapping[str, Any]) -> dict[str, str]:
    path = directory / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(path)}


def read(**sources: Any) -> dict[str, Any]:
    return read_inputs(DataSpec.model_validate(sources))


def test_rows_become_prompts_texts_and_sets(tmp_path: Path) -> None:
    assert read() == {}
    prompts = written(tmp_path, "prompts", {"question": "what ?"})
    assert read(general_prompts={**prompts, "columns": {"prompt": "question"}}) == {"general_prompts": ["what ?"]}
    answered = {"prompt": "what ?", "completion": " that"}
    assert read(replay=written(tmp_path, "a", answered)) == {"replay": ["what ? that"]}
    assert read(replay=written(tmp_path, "b", {"text": "long ago", "id": 1})) == {"replay": ["long ago"]}
    pair = {"prompt": "go", "chosen": " on", "rejected": " away"}
    sets = {"facts": written(tmp_path, "c", answered), "manners": written(tmp_path, "d", {**pair, "source": "us"})}
    assert read(reference_sets=sets) == {"reference_sets": {"facts": [answered], "manners": [pair]}}


@pytest.mark.parametrize(
    ("key", "rows", "message"),
    [
        ("general_prompts", [{"prompt": "a"}, {"prompt": " "}], r"row 2: expected a text in the field 'prompt'"),
        ("general_prompts", [{"text": "a"}], r"row 1: expected a text in the field 'prompt', it is missing"),
        ("replay", [{"prompt": "a"}], r"'text' or 'prompt' and 'completion', got 'prompt'"),
        ("replay", [{"text": ["a"]}], r"field 'text', it is \['a'\]"),
        ("replay", [], r"no row to use"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, key: str, rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(**{key: written(tmp_path, "rows", *rows)})


def test_a_reference_set_has_one_form(tmp_path: Path) -> None:
    mixed = written(tmp_path, "mixed", {"text": "a"}, {"prompt": "b", "completion": "c"})
    with pytest.raises(DataError, match="row 2: the row gives prompt and completion where others give text"):
        read(reference_sets={"facts": mixed})
    alike = written(tmp_path, "alike", {"prompt": "a", "chosen": "b", "rejected": "b"})
    with pytest.raises(DataError, match="chosen equals rejected"):
        read(reference_sets={"facts": alike})
    with pytest.raises(DataError, match="reference_sets is empty"):
        read(reference_sets={})


def test_what_a_method_needs_and_the_study_does_not_give_is_named_by_its_key() -> None:
    arm = ArmPlan("reading", ("reading",), [{}], (SettingPlan("", {}, (Reading(),), ()),))
    with pytest.raises(SpecError, match=r"reading needs data\.replay, which is not given"):
        check_arms([arm], Context("dpo", 4, given=frozenset({"general_prompts"})))
    check_arms([arm], Context("dpo", 4, given=frozenset({"general_prompts", "replay"})))


def test_data_makes_other_runs_of_the_methods_that_read_it_alone() -> None:
    identity, given = {"models": "m"}, {"general_prompts": "p1", "replay": "r1", "reference_sets": "s1"}
    assert run_key({**identity, "inputs": given}, (), 0) == run_key(identity, (), 0)
    first = run_key({**identity, "inputs": given}, (Reading(),), 0)
    assert run_key({**identity, "inputs": {**given, "reference_sets": "s2"}}, (Reading(),), 0) == first
    assert run_key({**identity, "inputs": {**given, "replay": "r2"}}, (Reading(),), 0) != first


def about(data: dict[str, Any], inputs: dict[str, str]) -> dict[str, Any]:
    identity = {"models": {}, "data": {}, "inputs": inputs}
    spec = {"models": {}, "data": data, "measure": {}, "keep": []}
    return {"spec": spec, "identity": identity, "measures": [], "select": [], "report": []}


def test_such_data_may_be_added_to_a_study_and_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.study.write_text("{}")
    replay = {"path": "texts.jsonl"}
    without, added = about({}, {}), about({"replay": replay}, {"replay": "r1"})
    del without["identity"]["inputs"]  # as studies wrote it before there were any
    monkeypatch.setattr(Store, "about", lambda self: without)
    record.compare(store, added)
    with pytest.raises(StoreError, match=r"data\.prompts was not given"):
        record.compare(store, about({"prompts": {"path": "other.jsonl"}}, {}))
    monkeypatch.setattr(Store, "about", lambda self: added)
    with pytest.raises(StoreError, match=r"content of data\.replay was 'r1', now 'r2'"):
        record.compare(store, about({"replay": replay}, {"replay": "r2"}))
    with pytest.raises(StoreError, match=r"content of data\.replay was 'r1', now not given"):
        record.compare(store, about({}, {}))


def test_the_embedded_world_gives_everything_and_its_runs_keep_their_keys() -> None:
    bench = prepare(parse_spec({"name": "keys", "models": {"initial": "pocket"}, "methods": ["plain"]}))
    assert bench.task.given == {"pretrained", "general_prompts", "reference_sets", "replay"}
    assert set(bench.runs) == {"dc83becdd5b8"}  # as in the committed results
