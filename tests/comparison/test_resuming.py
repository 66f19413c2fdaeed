"""A measurement that is cut off goes on batch by batch, and comes to the same numbers."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from untaxed.comparison import measure
from untaxed.comparison.journal import KeptJournal
from untaxed.comparison.models import opened
from untaxed.errors import StoreError
from untaxed.measuring import batching
from untaxed.measuring.forward import read

MORE = "    - {name: answered, kind: generated, metric: match, rows: {path: written.jsonl}, max_new_tokens: 3}\n"


class Cut(Exception):
    """Stands for a kill."""


class Reads:
    """Counts forward passes, and may raise at one of them."""

    def __init__(self) -> None:
        self.count, self.last = 0, None

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        self.count += 1
        if self.count == self.last:
            raise Cut
        return read(*args, **inputs)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    counted = Reads()
    for module in ("forward", "sampling", "generating"):
        monkeypatch.setattr(f"untaxed.measuring.{module}.read", counted)
    monkeypatch.setitem(batching.BATCH_TOKENS, "cpu", 128)  # so that there are batches
    return counted


@pytest.fixture
def small(suite: Path) -> Path:
    """A suite of every kind of measure that reads a model."""
    file = suite.with_name("small.yaml")
    text = suite.read_text().replace("drift: [forward_kl,", MORE + "drift: [forward_kl, reverse_kl, top_choice,")
    assert MORE in text
    file.write_text(text)
    return file


def plain(summary: Any) -> Any:
    return {key: value for key, value in summary.items() if key not in ("host", "versions")}


def test_a_measurement_that_is_cut_off_goes_on(models: Path, small: Path, tmp_path: Path, reads: Reads) -> None:
    given = [models / "near"], models / "initial", small
    whole = measure(*given, tmp_path / "whole")
    passes = reads.count
    assert not list((tmp_path / "whole").rglob("unfinished-*"))
    for cut in (10, passes // 3, passes // 2, passes - 3):
        reads.count, reads.last = 0, cut
        with pytest.raises(Cut):
            measure(*given, tmp_path / f"cut-{cut}")
        assert list((tmp_path / f"cut-{cut}").rglob("unfinished-*"))
        reads.count, reads.last = 0, None
        again = measure(*given, tmp_path / f"cut-{cut}")
        # a batch is at most one forward pass a token; nothing else is read twice
        assert passes - cut <= reads.count <= passes - cut + 6 + 2
        assert plain(again.summary) == plain(whole.summary)


def test_a_line_that_a_kill_has_cut_is_computed_again(tmp_path: Path) -> None:
    def value(number: int) -> torch.Tensor:
        return torch.tensor([0.1 * number, float("nan"), 1e-300], dtype=torch.float64)

    first = KeptJournal(tmp_path, "model")
    for number in (1, 2):
        first.once(lambda number=number: number, lambda number=number: value(number))
    first.file.write_bytes(first.file.read_bytes()[:-9])
    asked = []

    def ask(number: int) -> torch.Tensor:
        asked.append(number)
        return value(number)

    second = KeptJournal(tmp_path, "model")
    for number in (1, 2, 3):
        found = second.once(partial(int, number), partial(ask, number))
        assert found.numpy().tobytes() == value(number).numpy().tobytes()
    assert asked == [2, 3]
    third = KeptJournal(tmp_path, "model")
    assert third.once(lambda: 2, lambda: pytest.fail("it is known")).shape == (3,)
    assert KeptJournal(tmp_path, "another model").once(lambda: 2, lambda: ["text"]) == ["text"]
    assert KeptJournal(tmp_path, "another model").once(lambda: 2, list) == ["text"]
    third.remove()
    assert not third.file.exists()
    third.file.mkdir()
    with pytest.raises(StoreError, match="cannot be read"):
        KeptJournal(tmp_path, "model").once(lambda: 2, list)
    with pytest.raises(StoreError, match="cannot be written"):
        third.remove()


def test_where_texts_end_is_a_part_of_a_model(models: Path, small: Path, tmp_path: Path, reads: Reads) -> None:
    model = shutil.copytree(models / "near", tmp_path / "near")
    measure([model], models / "initial", small, tmp_path / "out")
    reads.count = 0
    measure([model], models / "initial", small, tmp_path / "out")
    assert reads.count == 0
    config = model / "generation_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token_id": 5}))
    measure([model], models / "initial", small, tmp_path / "out")
    assert reads.count > 0


@pytest.mark.parametrize("name", ["chat_template.jinja", "merges.txt", "added_tokens.json", "special_tokens_map.json"])
def test_files_of_the_tokenizer_are_a_part_of_a_model(models: Path, tmp_path: Path, name: str) -> None:
    model = shutil.copytree(models / "near", tmp_path / "near")
    before = opened(model, None, tmp_path).digest
    (model / name).write_text("{}")
    assert opened(model, None, tmp_path).digest != before
