from __future__ import annotations

import math
from typing import Any

import pytest

from untaxed.errors import DataError, RunFailed
from untaxed.training.data import as_reward_function, check_preferences, check_prompts, take_apart

GOOD = {"prompt": "a", "chosen": "b", "rejected": "c"}
TALK = {column: [{"role": "user", "content": text}] for column, text in GOOD.items()}


def test_preferences_keep_their_three_columns() -> None:
    assert check_preferences([{**GOOD, "source": "x"}]) == [GOOD]
    assert check_preferences([TALK, TALK]) == [TALK, TALK]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the preferences are empty"),
        ([GOOD, {"prompt": "a", "chosen": "b"}], "row 2: no column 'rejected' .* known: chosen, prompt"),
        ([{**GOOD, "prompt": None}], "row 1: prompt is null; expected a text"),
        ([GOOD, GOOD, {**GOOD, "rejected": "b"}], "row 3: chosen equals rejected"),
        ([{**GOOD, "chosen": ""}], "row 1: chosen is empty"),
        ([{**GOOD, "rejected": []}], r"row 1: rejected is \[\], which is list; expected a text"),
        ([GOOD, {**GOOD, "rejected": 3}], "row 2: rejected is 3, which is int; expected a text"),
        ([{"prompt": 1, "chosen": 2, "rejected": 3}] * 2, "row 1: prompt is 1, which is int"),
        ([{**TALK, "chosen": [{"role": "assistant", "content": None}]}], "row 1: chosen is .*, which is list"),
        ([GOOD, TALK], "row 2: prompt is a list of messages where others are a text"),
        ([{**TALK, "chosen": "b"}], "row 1: chosen is a text where others are a list of messages"),
        ([{**GOOD, "chosen": "ab\ud800"}], r"row 1: chosen holds '\\ud800' at character 3, half of a character"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_preferences(rows)


def test_pairs_are_taken_apart_in_an_order_that_the_seed_decides() -> None:
    pairs = [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(40)]
    rows = take_apart(pairs, seed=0)
    assert sorted(row["completion"] for row in rows) == sorted(
        pair[key] for pair in pairs for key in ("chosen", "rejected")
    )
    assert all(row["label"] == (row["completion"][0] == "c") for row in rows)
    assert all(row["prompt"][1:] == row["completion"][1:] for row in rows)
    assert 10 < sum(row["label"] for row in rows[:40]) < 30  # the first half is not all of one label
    assert rows == take_apart(pairs, seed=0)
    assert rows != take_apart(pairs, seed=1)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "0 prompts are too few: one batch of generations takes 2 different ones"),
        (["a"], "1 prompts are too few"),
        (["a", ""], "prompt 2 is empty"),
        ([3, "a"], "prompt 1 is not a text"),
    ],
)
def test_prompts_that_cannot_be_used_are_named(prompts: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_prompts(prompts, needed=2)


def test_a_reward_is_asked_with_prompts_and_completions_alone() -> None:
    function = as_reward_function(lambda prompts, completions: [len(p + c) for p, c in zip(prompts, completions)], int)
    assert function(prompts=["a", "b"], completions=["cc", "d"], completion_ids=[[1], [2]]) == [3.0, 2.0]
    assert function.__name__ == "proxy"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "at step 7: reward 'proxy' returned 1 values for 2 completions; return one finite number"),
        ([1.0, math.nan], "at step 7: reward 'proxy', row 1: expected a finite number, got nan for 'd'; return one"),
        ([math.inf, 1.0], "at step 7: reward 'proxy', row 0: expected a finite number, got inf for 'cc'"),
        ([1.0, 10**400], "at step 7: reward 'proxy', row 1: expected a number, got 1000"),
        (["good", 1.0], "at step 7: reward 'proxy', row 0: expected a number, got 'good'"),
    ],
)
def test_a_reward_that_breaks_stops_the_run(values: list[Any], message: str) -> None:
    function = as_reward_function(lambda prompts, completions: values, lambda: 7)
    with pytest.raises(RunFailed, match=message):
        function(prompts=["a", "b"], completions=["cc", "d"])
