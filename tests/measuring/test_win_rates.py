"""Win rates, and rewards and win rates at equal length: laws and worked numbers."""

from __future__ import annotations

import numpy as np
import pytest

from untaxed.errors import Undefined
from untaxed.measuring import Sampling, Subject, Suite, measure
from untaxed.measuring.rewards import Rated
from untaxed.measuring.statistics import draws, item_weights, value
from untaxed.measuring.win_rates import (
    Contest,
    reward_at_equal_length,
    reward_judge,
    win_rate,
    win_rate_at_equal_length,
)

PROMPTS = tuple(f"w{n} w{(3 * n) % 40}" for n in range(30))


@pytest.fixture
def subjects(model, other_model, tokenizer):
    """A model and the initial one, for a suite of the given measures."""

    def made(*measures):
        suite = Suite(tuple(measures), (), (), {"test": PROMPTS}, Sampling(8))
        start = Subject(other_model, tokenizer, suite)
        return Subject(model, tokenizer, suite, initial=start), start

    return made


def length(prompts, completions):
    return [float(len(text)) for text in completions]


def wordy(prompts, completions):
    return np.array([float(len(set(text.split()))) for text in completions])


def test_a_win_rate_counts_wins_and_half_of_the_ties(subjects) -> None:
    one = win_rate(Contest("by_words", reward_judge(wordy)))
    subject, start = subjects(one)
    scores = measure(subject, "test").scores["reward.by_words"]
    ours, theirs = (wordy(PROMPTS, each.completions("test").texts) for each in (subject, start))
    wins, ties = (ours > theirs).sum(), (ours == theirs).sum()
    assert min(wins, ties, len(PROMPTS) - wins - ties) > 0
    assert value(one.statistic, scores) == pytest.approx((wins + ties / 2) / len(PROMPTS))
    assert one.outcomes(scores) == {"lost": 30 - wins - ties, "won": wins, "tied": ties, "undefined": 0}


def test_initial_against_itself_is_a_tie_that_nobody_is_asked_about(subjects) -> None:
    def unasked(*_: object) -> list[float]:
        raise AssertionError

    one, controlled = (made(Contest("self", unasked)) for made in (win_rate, win_rate_at_equal_length))
    _, start = subjects(one, controlled)
    assert measure(start, "test").values["reward"] == {"self": 0.5, "self_at_equal_length": 0.5}


def test_both_models_swapped_give_the_complement(subjects, model, other_model, tokenizer) -> None:
    one = win_rate(Contest("by_words", reward_judge(wordy)))
    subject, _ = subjects(one)
    swapped = Subject(other_model, tokenizer, subject.suite, initial=Subject(model, tokenizer, subject.suite))
    rates = [measure(each, "test").values["reward"]["by_words"] for each in (subject, swapped)]
    assert sum(rates) == pytest.approx(1.0)


def test_an_item_without_an_outcome_is_left_out_and_many_are_no_win_rate(subjects) -> None:
    def judge_that_fails(times: int):
        def judge(prompts, ours, theirs):
            return [*["HTTP 503"] * (times - 1), "nonsense", *[1.0] * (len(prompts) - times)]

        return judge

    one = win_rate(Contest("judged", judge_that_fails(3)))
    controlled = win_rate_at_equal_length(Contest("judged", judge_that_fails(3)))
    subject, _ = subjects(one, controlled)
    found = measure(subject, "test")
    scores = found.scores["reward.judged"]
    assert one.outcomes(scores)["undefined"] == 3
    assert found.values["reward"]["judged"] == scores[:, 0].sum() / 27
    assert (found.scores["reward.judged_at_equal_length"][scores[:, 1] == 0] == 0).all()
    asked: list[int] = []

    def broken(prompts, ours, theirs):
        asked.append(len(prompts))
        return judge_that_fails(4)(prompts, ours, theirs)

    contest = Contest("judged", broken)
    both = win_rate(contest), win_rate_at_equal_length(contest)
    subject, _ = subjects(*both)
    for one in both:  # the same reason for both, asked for once
        with pytest.raises(Undefined, match=r"4 of 30 items could not be judged: 3 × HTTP 503; 1 × nonsense"):
            measure(subject, "test", [one.key])
    assert asked == [30]


def test_a_reward_of_length_alone_has_gained_nothing_at_equal_length(subjects) -> None:
    rated = Rated("length", length)
    subject, start = subjects(reward_at_equal_length(rated))
    assert abs((rated(subject, "test") - rated(start, "test")).mean()) > 0.5
    assert measure(subject, "test").values["reward"]["length_at_equal_length"] == pytest.approx(0, abs=1e-9)


def test_the_number_is_the_intercept_of_the_line_of_gains_over_lengths(subjects) -> None:
    rated = Rated("words", wordy)
    contest = Contest("by_words", reward_judge(wordy))
    subject, start = subjects(reward_at_equal_length(rated), win_rate_at_equal_length(contest))
    found = measure(subject, "test").values["reward"]
    ours, theirs = (each.completions("test").texts for each in (subject, start))
    x = np.array(length(PROMPTS, ours)) - np.array(length(PROMPTS, theirs))
    y = wordy(PROMPTS, ours) - wordy(PROMPTS, theirs)
    assert found["words_at_equal_length"] == pytest.approx(np.polyfit(x, y, 1)[1])
    assert found["by_words_at_equal_length"] == pytest.approx(np.polyfit(x, (np.sign(y) + 1) / 2, 1)[1])


def test_rewards_are_asked_for_once_a_model(subjects) -> None:
    calls: list[int] = []

    def counting(prompts, completions):
        calls.append(len(prompts))
        return length(prompts, completions)

    from untaxed.measuring.rewards import mean_reward

    rated = Rated("length", counting)
    subject, start = subjects(mean_reward(rated), reward_at_equal_length(rated))
    measure(subject, "test")
    measure(start, "test")
    assert calls == [30, 30]


def line(x: list[float], y: list[float]) -> float:
    x_, y_ = np.array(x), np.array(y)
    return value("at_equal_length", np.stack([np.ones(len(x)), x_, y_, x_ * y_, x_ * x_], axis=1))


def test_worked_intercepts() -> None:
    # means: x 2, y 5, x y 13, x x 5; slope (13 - 10) / (5 - 4) = 3; intercept 5 - 3 * 2 = -1
    assert line([1, 3], [2, 8]) == pytest.approx(-1)
    assert line([0, 0, 0], [1, 2, 6]) == pytest.approx(3)  # nothing differs in length: the mean
    assert np.isnan(line([4, 4], [1, 3]))  # all differ alike: no line says where 0 is


def test_the_interval_is_that_of_the_regression() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(20, 30, 2000)
    y = 0.4 + 0.02 * x + rng.normal(0, 1, 2000)
    scores = np.stack([np.ones(2000), x, y, x * y, x * x], axis=1)
    found = draws("at_equal_length", [scores], item_weights("test/reward.r", 2000))[:, 0]
    slope, intercept = np.polyfit(x, y, 1)
    residual = (y - intercept - slope * x).std(ddof=2)
    error = residual * np.sqrt(1 / 2000 + x.mean() ** 2 / ((x - x.mean()) ** 2).sum())
    assert found[0] == pytest.approx(intercept)
    assert found[1:].std(ddof=1) == pytest.approx(error, rel=0.1)
