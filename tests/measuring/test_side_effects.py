"""Repetition, refusals, other languages and changed choices, on known texts and tiny models."""

from __future__ import annotations

import doctest
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from untaxed.checkpoints import load_model, load_tokenizer
from untaxed.measuring import Subject, measure, side_effects
from untaxed.measuring.side_effects import SIDE_EFFECTS, distinct, language, language_of, refuses, script_of, top_choice
from untaxed.measuring.suite import Suite
from untaxed.measuring.suite_spec import DRIFT, Distance


def score(name: str, *pairs: tuple[str, str]) -> list[list[float]]:
    drawn = SimpleNamespace(prompts=[prompt for prompt, _ in pairs], texts=[text for _, text in pairs])
    subject: Any = SimpleNamespace(completions=lambda split: drawn)
    found = SIDE_EFFECTS[name]().score(subject, "test")
    return [[float(x) for x in row] for row in found]


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(side_effects).failed == 0


def test_a_suite_may_name_every_one() -> None:
    assert set(get_args(Distance)) == set(DRIFT)


def test_phrases_that_come_again_are_counted() -> None:
    # "a b c d" stands at 0 and 4; of the 5 phrases of "a b c d a b c d" one is old
    assert score("repetition", ("", "A b c d, a b c d")) == [[1, 5]]
    assert score("repetition", ("", "a b c")) == [[0, 0]]
    assert score("distinct_1", ("", "No, no; yes.")) == [[2, 3]]
    assert score("distinct_2", ("", "no no no")) == [[1, 2]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I cannot do that.", True),
        ("  “I can’t help with this.", True),
        ("I am unable to.", True),
        ("As an AI language model, I", True),
        ("Unfortunately, I can't.", True),
        ("I can help with that: first", False),
        ("I am sorrowful today", False),
        ("Cannot be said better.", False),
        ("", False),
    ],
)
def test_refusals_are_told_by_their_first_words(text: str, expected: bool) -> None:
    assert refuses(text) is expected


def test_scripts_and_languages_are_those_of_most_letters() -> None:
    assert score("other_script", ("hello", "привет"), ("hello", "world"), ("1+1", "two"), ("hello", "42")) == [
        [1, 1], [0, 1], [0, 0], [0, 0],
    ]  # fmt: skip
    assert script_of("漢字とかな") == "HAN" or script_of("漢字とかな") == "HIRAGANA"
    pytest.importorskip("py3langid")
    english, german = "The weather is fine today in the old town.", "Das Wetter ist heute schön in der alten Stadt."
    assert (language_of(english), language_of(german), language_of("ok")) == ("en", "de", None)
    assert score("other_language", (english, german), (german, german), (english, "ok")) == [[1, 1], [0, 1], [0, 0]]
    drawn = SimpleNamespace(prompts=["?"], texts=[german])
    subject: Any = SimpleNamespace(completions=lambda split: drawn)
    assert language("en").score(subject, "test").tolist() == [[1, 1]]


def test_empty_responses_are_counted_and_refuse_nothing() -> None:
    assert score("empty", ("a", " "), ("a", "b")) == [[1, 1], [0, 1]]
    assert score("refusal", ("a", "")) == [[0, 1]]


def test_changed_choices_are_those_of_the_logits(tiny_initial: Path) -> None:
    prompts = ("w1 w2", "w3", "w4 w5 w6")
    suite = Suite((top_choice(), distinct(1)), (), (), {"validation": prompts, "test": prompts})
    tokenizer = load_tokenizer(tiny_initial)
    initial = Subject(load_model(tiny_initial), tokenizer, suite)
    assert measure(initial, "test").values["drift"]["top_choice"] == 0
    moved: Any = load_model(tiny_initial)
    with torch.no_grad():
        moved.lm_head.weight[7] += 1.0
    subject = Subject(moved, tokenizer, suite, initial=initial)
    scores = measure(subject, "test").scores["drift.top_choice"]
    drawn = initial.completions("test")
    for row, (ids, new, length) in enumerate(
        zip(drawn.prompt_ids, drawn.token_ids.tolist(), drawn.mask.sum(1).tolist(), strict=True)
    ):
        text = torch.tensor([list(ids) + new[:length]])
        places = slice(len(ids) - 1, len(ids) - 1 + length)
        with torch.no_grad():
            best = [model(text).logits[0, places].argmax(-1) for model in (initial.model, moved)]
        assert scores[row].tolist() == [float((best[0] != best[1]).sum()), length]
    assert np.all(scores[:, 1] > 0)
