"""The paired difference of two models: by hand, against scipy, and against resampling in the plainest way."""

import math

import numpy as np
import pytest
from scipy import stats

from untaxed.measuring.paired import paired_difference
from untaxed.measuring.statistics import value


def column(*numbers):
    return np.array(numbers, dtype=float)[:, None]


def noisy(seeds, items=60, k=1, seed=0):
    generator = np.random.default_rng(seed)
    easy = generator.random((items, k))
    return [easy + generator.normal(0, 0.1, (items, k)) + 0.05 * generator.normal() + 1 for _ in range(seeds)]


def test_over_seeds_is_scipys_paired_t_test():
    before, after = noisy(5, seed=1), noisy(5, seed=2)
    means = [[scores.mean() for scores in models] for models in (before, after)]
    expected = stats.ttest_rel(means[1], means[0])
    low, high = expected.confidence_interval()
    found = paired_difference("mean", before, after, over="seeds")
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high))


def test_over_items_is_scipys_paired_t_test_within_the_bootstraps_error():
    [before], [after] = noisy(1, seed=1), noisy(1, seed=2)
    expected = stats.ttest_rel(after[:, 0], before[:, 0])
    low, high = expected.confidence_interval()
    found = paired_difference("mean", [before], [after], over="items", replicates=4000)
    assert found.interval.mean == pytest.approx((after - before).mean())
    assert found.interval.high - found.interval.low == pytest.approx(high - low, rel=0.04)
    assert found.p == pytest.approx(expected.pvalue, rel=0.2)


def test_perplexity_agrees_with_scipys_paired_bootstrap():
    """Sums of nats and numbers of tokens: the number is formed anew on every resample."""
    generator = np.random.default_rng(3)
    tokens = generator.integers(5, 60, 80).astype(float)
    before = np.stack([tokens * generator.normal(2.0, 0.3, 80), tokens], axis=1)
    after = before + np.stack([tokens * generator.normal(0.1, 0.1, 80), np.zeros(80)], axis=1)

    def difference(first, second, size, axis=-1):
        total = size.sum(axis)
        return np.exp(second.sum(axis) / total) - np.exp(first.sum(axis) / total)

    expected = stats.bootstrap(
        (before[:, 0], after[:, 0], tokens), difference, paired=True, n_resamples=2000, rng=np.random.default_rng(0)
    )
    found = paired_difference("perplexity", [before], [after], over="items", replicates=2000)
    assert found.interval.mean == pytest.approx(value("perplexity", after) - value("perplexity", before))
    half = stats.t.ppf(0.975, 79) * expected.standard_error * math.sqrt(80 / 79)
    assert found.interval.high - found.interval.mean == pytest.approx(half, rel=0.06)


def test_over_both_is_never_narrower_than_either():
    before, after = noisy(1), noisy(4, seed=2)
    both, seeds = (paired_difference("mean", before, after, over=over).interval for over in ("both", "seeds"))
    assert both.high - both.low > seeds.high - seeds.low
    assert (both.mean, both.n) == (seeds.mean, 4)


def test_what_both_models_share_cancels():
    easy = np.random.default_rng(0).random((40, 1))
    found = paired_difference("mean", [easy], [easy - 0.1], over="items")
    assert found.interval.low == pytest.approx(-0.1)
    assert (found.changed, found.items) == (40, 40)
    same = paired_difference("mean", [easy], [easy], over="items")
    assert (same.p, same.changed, same.interval.mean) == (1.0, 0, 0.0)


def test_where_few_right_or_wrong_items_change_some_are_counted_that_were_not_seen():
    right = np.ones((50, 1))
    # nothing changed: an error of sqrt(2) / 50 = 0.028284, times t(0.975, 49) = 2.009575
    found = paired_difference("mean", [right], [right], over="items")
    assert (found.interval.high, found.p) == (pytest.approx(0.056840, abs=1e-6), 1.0)
    # scores in between are taken as they are
    assert paired_difference("mean", [right / 2], [right / 2], over="items").interval.high == 0


def test_one_model_before_stands_for_all_seeds():
    before, after = noisy(1), noisy(3, seed=2)
    assert paired_difference("mean", before, after) == paired_difference("mean", before * 3, after)


def test_changed_counts_items_that_any_seed_scores_differently():
    found = paired_difference("mean", [column(1, 1, 0, 0)], [column(1, 0, 0, 0), column(1, 1, 0, 1)])
    assert found.changed == 2


def test_few_seeds_are_items_only_or_undefined():
    assert paired_difference("mean", noisy(1), noisy(2)).interval.why == "items only, 2 seeds"
    alone = paired_difference("mean", noisy(1), noisy(2), over="seeds")
    assert (alone.p, alone.interval.why) == (None, "3 seeds are needed, there are 2")
    assert (
        paired_difference("mean", [column(1)], [column(0)], over="items").interval.why
        == "2 items are needed, there is 1"
    )


def test_a_number_that_some_resample_lacks_is_undefined():
    one_has_tokens = np.array([[0.0, 0.0]] * 5 + [[2.0, 1.0]])
    for over in ("items", "both"):
        found = paired_difference("token_mean", [one_has_tokens], [one_has_tokens], over=over)
        assert (found.interval.mean, found.p) == (None, None)
        assert "every resample" in found.interval.why


@pytest.mark.parametrize(
    ("before", "after", "over", "said"),
    [
        ([column(1, 0)], [column(1, 0)], "item", "over must be one of items, seeds, both, got 'item'"),
        ([column(1, 0)], [], "items", "got 1"),
        ([column(1, 0)] * 2, [column(1, 0)] * 3, "both", "for each of after's 3, got 2"),
        ([column(1, 0)], [column(1, 0, 1)], "items", "on the same items"),
        ([np.ones(3)], [np.ones(3)], "items", r"must all be \(items, k\)"),
        ([np.ones((0, 1))], [np.ones((0, 1))], "items", "no items"),
        ([column(1, 0)], [column(1, math.nan)], "items", "not finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(before, after, over, said):
    with pytest.raises(ValueError, match=said):
        paired_difference("mean", before, after, over=over)
