import math

import numpy as np
import pytest
import torch

from untaxed.errors import DataError, UsageError
from untaxed.measuring import Sampling, Subject, Suite, measure, reward
from untaxed.measuring.rewards import rewards_of


def ones(prompts, completions):
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    "values", [[1, 2.5, True], (1, 2.5, 1), np.array([1, 2.5, 1]), torch.tensor([1, 2.5, 1]), iter([1, 2.5, 1])]
)
def test_numbers_of_any_kind_are_taken(values):
    made = rewards_of("proxy", lambda p, c: values, "abc", "abc")
    assert made.dtype == np.float64
    assert made.tolist() == [1.0, 2.5, 1.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "reward 'proxy' returned 1 values for 2 completions"),
        ([1.0, 2.0, 3.0], "returned 3 values for 2"),
        ([1.0, None], "reward 'proxy', row 1: expected a number, got None"),
        ([1.0, "good"], "row 1: expected a number, got 'good'"),
        ([math.nan, 1.0], "row 0: expected a finite number, got nan"),
        ([1.0, -math.inf], "row 1: expected a finite number, got -inf"),
        (None, "reward 'proxy': expected 2 numbers, got None"),
        (0.5, "reward 'proxy': expected 2 numbers, got 0.5"),
        ([10**400, 1.0], "reward 'proxy', row 0: expected a number, got 1000"),
        ([1.0, -(10**9999)], "reward 'proxy', row 1: expected a number, got <int>; return one finite number for every"),
        ([1j, 1.0], "row 0: expected a number, got 1j"),
        (np.array(0.5), "reward 'proxy' raised TypeError: iteration over a 0-d array"),
    ],
)
def test_nonsense_is_refused_with_its_row(values, message):
    with pytest.raises(DataError, match=message) as caught:
        rewards_of("proxy", lambda p, c: values, "ab", "ab")
    assert isinstance(caught.value, UsageError)
    assert "\n" not in str(caught.value)


def test_the_function_gets_prompts_and_completions_as_texts(model, tokenizer):
    seen = []

    def score(prompts, completions):
        seen.append((list(prompts), list(completions)))
        return [len(text) for text in completions]

    suite = Suite((reward("gold", score),), (), (), {"test": ("w0 w1", "w2")}, Sampling(max_new_tokens=6))
    made = measure(Subject(model, tokenizer, suite), "test")
    ((prompts, completions),) = seen
    assert prompts == ["w0 w1", "w2"]
    assert made.scores["reward.gold"][:, 0].tolist() == [len(text) for text in completions]
    assert made.values["reward"] == {"gold": np.mean([len(text) for text in completions])}
    assert made.texts == [
        {"prompt": prompt, "completion": text, "proxy": None, "gold": float(len(text))}
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def test_a_reward_that_raises_is_named() -> None:
    def broken(prompts: list[str], completions: list[str]) -> list[float]:
        raise KeyError("label")

    def leaving(prompts: list[str], completions: list[str]) -> list[float]:
        raise SystemExit(3)

    with pytest.raises(DataError, match=r"reward .mine. raised KeyError"):
        rewards_of("mine", broken, ["a"], ["b"])
    with pytest.raises(DataError, match=r"reward .mine. raised SystemExit: 3"):
        rewards_of("mine", leaving, ["a"], ["b"])


def test_a_reward_that_empties_its_lists_is_judged_by_what_it_was_given() -> None:
    def emptying(prompts: list[str], completions: list[str]) -> list[float]:
        prompts.clear()
        completions.clear()
        return [1.0, math.nan]

    with pytest.raises(DataError, match=r"row 1: expected a finite number, got nan for 'd'"):
        rewards_of("mine", emptying, ["a", "b"], ["c", "d"])
