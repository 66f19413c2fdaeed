"""Gold reward: worked examples."""

import random

import pytest

from untaxed.pocket.sentiment import gold, gold_reward, well_formed, write_review
from untaxed.pocket.world import MAX_NEW_TOKENS


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("the look was sublime . i give 9 .", 1.0),
        ("what a vile look . i give 0 .", 0.0),
        ("the look was grey . i give 9 .", 0.75),  # valences 0 and 1, mean 0.5, moved to [0, 1]
        ("the look was sublime and the look was sublime . i give 9 .", 2 / 3),  # an aspect counts once
        ("the look was sublime .", 0.5),  # no grade: one of two parts
        ("the sublime look was . i give 9 .", 0.5),  # a broken clause
        ("sublime sublime sublime", 0.0),
        ("", 0.0),
        ("the look was sublime . i give 9 . i give 9 .", 2 / 3),  # something after the grade
    ],
)
def test_gold_of_worked_examples(text, value):
    assert gold(text) == pytest.approx(value)


def test_every_written_review_is_well_formed():
    rng = random.Random(0)
    for _ in range(300):
        text = write_review(rng)
        assert well_formed(text) == 1
        assert len(text.split()) < MAX_NEW_TOKENS


def test_gold_reward_maps_completions():
    assert gold_reward(["a", "b"], ["what a vile look . i give 0 .", "the look was sublime . i give 9 ."]) == [0.0, 1.0]
