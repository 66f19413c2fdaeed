"""Gold reward: worked examples."""

import random

import pytest

from untaxed.pocket.sentiment import gold, gold_reward, well_formed, write_review
from untaxed.pocket.worlds import REVIEWS


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("the look was sublime and the feel felt sublime . i give 9 .", 1.0),
        ("the look was vile but the feel seemed vile . i give 0 .", 0.0),
        ("the look was grey , the feel was old . i give 9 .", 2 / 3),  # mean of 0, 0 and 1 is 1/3, moved to [0, 1]
        ("the look was sublime and the look was sublime . i give 9 .", 2 / 3),  # an aspect counts once
        ("the look was sublime . i give 9 .", 2 / 3),  # a clause is missing
        ("the look was sublime and the feel was sublime .", 2 / 3),  # no grade
        ("the look was sublime and the sublime feel . i give 9 .", 2 / 3),  # a broken clause
        ("the look was sublime and the feel was sublime . i give 9 . i give 9 .", 3 / 4),  # a part too many
        ("sublime sublime sublime", 0.0),
        ("", 0.0),
    ],
)
def test_gold_of_worked_examples(text, value):
    assert gold(text) == pytest.approx(value)


def test_every_written_review_is_well_formed():
    rng = random.Random(0)
    for _ in range(300):
        text = write_review(rng)
        assert well_formed(text) == 1
        assert len(text.split()) < REVIEWS.max_new_tokens


def test_gold_reward_maps_completions():
    assert gold_reward(["a", "b"], ["", "the look was sublime and the feel was sublime . i give 9 ."]) == [0.0, 1.0]
