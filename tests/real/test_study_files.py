"""The committed SmolLM2 studies: they read, their data fit in both forms, preparation runs on a tiny model."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import WORDS

from untaxed.measuring.suite_items import items_of
from untaxed.rows import RowsSource
from untaxed.studies.prepare import build_task
from untaxed.studies.spec import load_spec
from untaxed.training import check_arguments

STUDIES = Path(__file__).parents[2] / "studies"
FILES = sorted(STUDIES.glob("sentiment_smollm2*.yaml"))


def text(n: int, words: int) -> str:
    return " ".join(WORDS[(n * k + n // 28) % 28] for k in range(1, words + 1))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The five local files in the form that the studies' header states, with made-up words."""
    folder = tmp_path / "data"
    piqa = [{"goal": text(n, 5), "sol1": text(n + 1, 4), "sol2": text(n + 2, 3), "label": n % 2} for n in range(900)]
    arc = [{"question": text(n, 6), "choices": ["w1", "w2", "w3"], "answer": n % 3} for n in range(600)]
    write(folder / "rotten_tomatoes/rt_polarity.jsonl.gz", [{"text": text(n, 9), "label": n % 2} for n in range(900)])
    write(folder / "piqa/piqa_valid.jsonl.gz", piqa)
    write(folder / "arc_easy/arc_easy.jsonl.gz", arc)
    write(folder / "c4_sample/c4.jsonl.gz", [{"text": text(n, 120)} for n in range(60)])
    wiki = folder / "wikitext2/wiki.test.raw.txt.gz"
    wiki.parent.mkdir()
    wiki.write_bytes(gzip.compress("\n\n".join(text(n, 120) for n in range(60)).encode()))
    monkeypatch.setenv("UNTAXED_DATA", str(folder))
    return folder


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_spec_reads_and_its_arguments_are_known(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNTAXED_DATA", raising=False)
    spec = load_spec(file)
    assert spec.algorithm is not None
    check_arguments(spec.algorithm.name, spec.algorithm.arguments())
    assert spec.data.prompts is not None
    assert spec.data.prompts.file() is None  # without the variable the hub is asked
    assert ": /" not in file.read_text()  # no absolute path


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_preparation_on_a_tiny_model(file: Path, data: Path, tiny_initial: Path, tmp_path: Path) -> None:
    pytest.importorskip("vaderSentiment", reason="vaderSentiment is not installed (extra smollm2)")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra smollm2)")
    sets = [
        f"models.pretrained={tiny_initial}",
        "models.initial.sft.max_steps=1",
        "data.preferences.sampled={prompts: 4, per_prompt: 2}",
    ]
    # VADER knows no made-up word and would tie on all of them
    task = build_task(load_spec(file, [*sets, "measure.reward.proxy=tiny:reward"]), tmp_path / "cache")
    assert task.suite.select == ("piqa",)
    assert task.suite.report == ("arc_easy",)
    names = [measure.name for measure in task.suite.measures]
    assert names == ["proxy", "gold", "piqa", "arc_easy", "forward_kl", "reverse_kl", "wikitext2", "c4"]
    assert task.preferences


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_arc_in_the_form_of_the_hub(file: Path, tmp_path: Path) -> None:
    [arc] = load_spec(file).measure.abilities.report
    choices = {"text": ["12", "3", "4", "1"], "label": ["1", "2", "3", "4"]}
    rows = [{"question": f"What is {n}?", "choices": choices, "answerKey": "4"} for n in range(8)]
    write(tmp_path / "hub/arc.jsonl.gz", rows)
    source = RowsSource(path=str(tmp_path / "hub/arc.jsonl.gz"), columns=arc.rows.columns)
    items = items_of(arc.model_copy(update={"rows": source, "limit": None}), tmp_path)
    for item in (*items["validation"], *items["test"]):
        assert item.choices == ("12", "3", "4", "1")
        assert item.answer == 3  # the label "4", not the choice "4"
        assert item.prompt.endswith("?\nAnswer:")
