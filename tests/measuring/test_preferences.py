"""The implicit reward of DPO on held-out pairs, against plain forward passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from untaxed.errors import DataError
from untaxed.measuring import Subject, Suite, measure
from untaxed.measuring.contest_spec import PairsSpec, pair_measures
from untaxed.measuring.preferences import Pair, implicit_rewards, pair_names
from untaxed.rows import RowsSource

PAIRS = [Pair(f"w{n} w{n + 1}", f"w{3 * n % 40} w{n} <eos>", f"w{7 * n % 40}") for n in range(1, 25)]


def log_likelihood(model, tokenizer, prompt: str, answer: str) -> float:
    """Of the answer's tokens and the end, from a plain forward pass."""
    ids = tokenizer(f"{prompt} {answer}", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        every = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float(sum(every[at - 1, ids[at]] for at in range(start, len(ids))))


def subject_of(model, other_model, tokenizer, pairs=PAIRS, beta: float = 0.3) -> Subject:
    suite = Suite(implicit_rewards("held_out", {"test": pairs}, beta=beta), (), (), {})
    return Subject(model, tokenizer, suite, initial=Subject(other_model, tokenizer, suite))


def test_the_rewards_are_those_of_plain_forward_passes(model, other_model, tokenizer) -> None:
    made = measure(subject_of(model, other_model, tokenizer), "test")

    def implicit(prompt: str, answer: str) -> float:
        own, start = (log_likelihood(each, tokenizer, prompt, answer) for each in (model, other_model))
        return 0.3 * (own - start)

    chosen = np.array([implicit(pair.prompt, pair.chosen.removesuffix(" <eos>")) for pair in PAIRS])
    rejected = np.array([implicit(pair.prompt, pair.rejected) for pair in PAIRS])
    values = made.values["reward"]
    assert list(values) == pair_names("held_out")
    assert made.scores["reward.held_out_margin"][:, 0] == pytest.approx(chosen - rejected, abs=1e-4)
    assert values["held_out_chosen"] == pytest.approx(chosen.mean(), abs=1e-4)
    assert values["held_out_rejected"] == pytest.approx(rejected.mean(), abs=1e-4)
    assert 0 < values["held_out_accuracy"] == (chosen > rejected).mean() < 1
    assert made.texts == []


def test_initial_itself_has_nothing_and_guesses(model, tokenizer) -> None:
    values = measure(subject_of(model, model, tokenizer), "test").values["reward"]
    assert values == {
        "held_out_accuracy": 0.5, "held_out_margin": 0.0, "held_out_chosen": 0.0, "held_out_rejected": 0.0,
    }  # fmt: skip


def test_pairs_longer_than_the_context_are_counted(model, other_model, tokenizer) -> None:
    pairs = [*PAIRS, Pair("w1", "w2 " * 80, "w3")]
    with pytest.raises(
        DataError, match=r"1 of 50 answers are longer with their prompts than the model's context of 64"
    ):
        measure(subject_of(model, other_model, tokenizer, pairs), "test")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": "a"}, "row 1: expected a text in the field 'rejected', it is missing"),
        ({"prompt": "p", "chosen": ["a"], "rejected": "b"}, r"field 'chosen', it is \['a'\]"),
        ({"prompt": "p", "chosen": "a", "rejected": " "}, "field 'rejected', it is ' '"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen equals rejected"),
    ],
)
def test_rows_that_prefer_nothing_are_named(tmp_path: Path, row: dict, message: str) -> None:
    import json

    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=message):
        pair_measures("held_out", PairsSpec(rows=RowsSource(path="pairs.jsonl")), tmp_path)
