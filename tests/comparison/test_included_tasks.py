"""Task files of lm-evaluation-harness that a suite includes: what is changed in one is measured again."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from untaxed.comparison import load_suite
from untaxed.measuring.lm_eval_tasks import LmEvalSpec
from untaxed.studies.bench import local_files
from untaxed.studies.places import located

DOCUMENTS = [{"q": f"w{n}", "gold": n % 2} for n in range(40)]


class Task:
    def __init__(self) -> None:
        self.eval_docs = list(DOCUMENTS)

    def aggregation(self) -> dict[str, Any]:
        return {"acc": types.SimpleNamespace(__name__="mean")}

    def higher_is_better(self) -> dict[str, bool]:
        return {"acc": True}


class Manager:
    all_tasks = ("quiz",)

    def __init__(self, include_path: str | None = None) -> None:
        assert include_path is not None
        assert (Path(include_path) / "quiz.yaml").exists()

    def load(self, names: list[str]) -> dict[str, Any]:
        return {"tasks": {"quiz": Task()}}


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sys.modules, "lm_eval", types.ModuleType("lm_eval"))
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", types.SimpleNamespace(TaskManager=Manager))
    folder = tmp_path / "mine"
    (folder / "tasks" / "code").mkdir(parents=True)
    (folder / "tasks" / "quiz.yaml").write_text("task: quiz\n")
    (folder / "tasks" / "code" / "utils.py").write_text("def doc_to_text(doc): ...\n")
    choices = "".join(f'{{"prompt": "w{n}", "choices": ["w1", "w2"], "answer": 0}}\n' for n in range(40))
    (folder / "choices.jsonl").write_text(choices)
    (folder / "suite.yaml").write_text(
        "abilities:\n  select:\n    - {lm_eval: quiz, include: tasks}\n"
        "    - {name: choices, kind: multiple_choice, rows: {path: choices.jsonl}}\n"
    )
    return folder / "suite.yaml"


def changed(suite: Path, before: Mapping[str, str]) -> set[str]:
    after = load_suite(suite).contents
    return {key for key in before if before[key] != after[key]}


@pytest.mark.parametrize("name", ["quiz.yaml", "code/utils.py"])
def test_a_changed_task_file_is_measured_again(suite: Path, name: str) -> None:
    before = load_suite(suite).contents
    (suite.parent / "tasks" / "notes.log").write_text("nothing that a task reads")
    assert not changed(suite, before)
    with (suite.parent / "tasks" / name).open("a") as file:
        file.write("# changed\n")
    assert changed(suite, before) == {"abilities.quiz"}


def test_changed_documents_are_measured_again(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_suite(suite).contents
    monkeypatch.setitem(DOCUMENTS[0], "gold", 1)
    assert changed(suite, before) == {"abilities.quiz"}


def test_what_was_moved_is_not(suite: Path, tmp_path: Path) -> None:
    before = load_suite(suite).contents
    suite.parent.rename(tmp_path / "moved")
    assert not changed(tmp_path / "moved" / "suite.yaml", before)


def test_a_study_notices_them_too(suite: Path) -> None:
    spec = {"measure": {"abilities": {"select": [{"lm_eval": "quiz", "include": "tasks"}]}}}
    [entry] = located(spec, suite.parent)["measure"]["abilities"]["select"]
    assert entry["include"] == str(suite.parent / "tasks")
    files = {file.name for file in local_files([LmEvalSpec(**entry)])}
    assert files == {"quiz.yaml", "utils.py"}
