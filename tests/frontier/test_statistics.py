"""The statistics: against scipy, by hand, and by simulating how often an interval covers the truth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from untaxed.measuring.quantiles import t_cdf, t_quantile
from untaxed.measuring.statistics import (
    Interval,
    draws,
    fieller,
    item_covariance,
    item_weights,
    p_value,
    seed_covariance,
    student,
    value,
    with_spread,
)


def certain(values):
    """Draws of values that carry no item noise: (1 + replicates, seeds)."""
    return np.tile(np.asarray(values, dtype=float), (4, 1))


def test_quantile_agrees_with_scipy():
    for freedom in [*range(1, 120), 500, 1999]:
        for probability in (0.975, 0.5, 0.9, 0.01):
            expected = stats.t.ppf(probability, freedom)
            assert t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@settings(deadline=None)
@given(st.floats(-1e9, 1e9), st.integers(1, 500))
def test_cdf_is_a_probability_far_out_too(t, freedom):
    assert 0 <= t_cdf(t, freedom) <= 1


def test_cdf_agrees_with_scipy():
    for freedom in (1, 2, 3, 4, 7, 30, 101):
        for t in (-40.0, -2.5, 0.0, 0.3, 6.0):
            assert t_cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-13)


@pytest.mark.parametrize("call", [lambda: t_cdf(1.0, 0), lambda: t_quantile(1.0, 3)])
def test_quantile_refuses_what_has_no_answer(call):
    with pytest.raises(ValueError, match="must be"):
        call()


def test_values_by_hand():
    assert value("mean", np.array([[1.0], [0.0], [1.0], [1.0]])) == 0.75
    # tokens count, not items: (6 + 3) / (2 + 1) = 3, and not (3 + 3) / 2
    assert value("token_mean", np.array([[6.0, 2.0], [3.0, 1.0]])) == 3.0
    assert value("perplexity", np.array([[2.0 * math.log(5), 2.0], [math.log(5), 1.0]])) == pytest.approx(5.0)


def test_values_that_are_undefined_are_nan_without_a_warning():
    assert math.isnan(value("mean", np.zeros((0, 1))))
    assert math.isnan(value("token_mean", np.zeros((3, 2))))


def test_unknown_statistics_and_flat_scores_are_refused():
    with pytest.raises(ValueError, match="did you mean 'mean'"):
        value("meen", np.zeros((2, 1)))
    with pytest.raises(ValueError, match="items, k"):
        value("mean", np.zeros(2))


def test_weights_depend_on_key_items_and_seed_only():
    first, again = item_weights("test/abilities.facts", 7, 20), item_weights("test/abilities.facts", 7, 20)
    assert (first == again).all()
    assert not (first == item_weights("test/abilities.reading", 7, 20)).all()
    assert not (first == item_weights("test/abilities.facts", 7, 20, seed=1)).all()
    assert first[0] == pytest.approx(np.full(7, 1 / 7))
    assert first.sum(axis=1) == pytest.approx(np.ones(21))


def test_bootstrap_gives_the_standard_error_of_a_mean():
    scores = np.random.default_rng(0).random((400, 1))
    replicates = draws("mean", [scores], item_weights("k", 400, 4000))
    assert replicates[0, 0] == pytest.approx(scores.mean())
    assert replicates[1:].std() == pytest.approx(scores.std() / 20, rel=0.04)


def test_draws_resample_all_models_alike():
    scores = np.random.default_rng(0).random((50, 2)) + 0.5
    both = draws("perplexity", [scores, scores], item_weights("k", 50, 100))
    assert (both[:, 0] == both[:, 1]).all()


def test_student_by_hand():
    # mean 2, s = 1, n = 3: 2 +- t(0.975, 2) / sqrt(3) = 4.302653 * 0.577350 = 2.484138
    interval = student(certain([1.0, 2.0, 3.0]))
    assert interval == Interval(2.0, pytest.approx(-0.484138, abs=1e-6), pytest.approx(4.484138, abs=1e-6), 3)


def test_student_adds_item_noise():
    # three seeds that agree, seed means of the replicates 1.9 and 2.1: v = 0.02, half = 1.959964 * sqrt(0.02)
    quantity = np.array([[2.0] * 3, [1.9] * 3, [2.1] * 3])
    assert student(quantity).high == pytest.approx(2 + 1.959964 * math.sqrt(0.02), abs=1e-6)
    # with seeds 1, 2, 3 beside: s = 1, half = sqrt(4.302653^2 / 3 + 1.959964^2 * 0.02) = sqrt(6.170941 + 0.076829)
    quantity = quantity + np.array([-1.0, 0.0, 1.0])
    assert student(quantity).high == pytest.approx(2 + 2.499554, abs=1e-6)


@pytest.mark.parametrize(("seeds", "label"), [(1, "items only, 1 seed"), (2, "items only, 2 seeds")])
def test_few_seeds_use_items_only_and_say_so(seeds, label):
    quantity = np.array([[2.0, 5.0], [1.9, 4.9], [2.1, 5.1]])[:, :seeds]
    interval = student(quantity)
    assert interval.why == label
    assert interval.high - interval.mean == pytest.approx(1.959964 * math.sqrt(0.02), abs=1e-6)


def test_undefined_intervals_have_no_numbers_and_a_reason():
    assert student(np.zeros((5, 0))).json() == {
        "mean": None,
        "low": None,
        "high": None,
        "n": 0,
        "why": "no seed has it",
    }
    assert student(certain([math.nan, 1.0, 2.0])).why == "not a finite number on every resample of the items"
    assert p_value(certain([math.nan, 1.0, 2.0])) is None


def test_p_value_agrees_with_scipy_and_with_the_interval():
    values = [0.3, 0.1, 0.45, 0.2]
    assert p_value(certain(values)) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert p_value(certain([1.0, 1.0, 1.0])) == 0.0
    assert p_value(certain([0.0, 0.0, 0.0])) == 1.0


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=3, max_size=8))
def test_interval_excludes_zero_exactly_when_p_is_below_five_percent(values):
    p, interval = p_value(certain(values)), student(certain(values))
    if abs(p - 0.05) > 1e-9:
        assert (p < 0.05) == (interval.excludes_zero or (interval.low == interval.high != 0))


def test_fieller_is_the_set_of_ratios_that_are_not_rejected():
    x, y = certain([0.2, 0.31, 0.25, 0.22, 0.4]), certain([0.5, 0.6, 0.55, 0.4, 0.7])
    interval = fieller(x, y)
    assert interval.mean == pytest.approx(x[0].mean() / y[0].mean())
    # at the ends, x - rho y is exactly on the border of its own Student interval
    for rho in (interval.low, interval.high):
        border = student(x - rho * y)
        assert min(abs(border.low), abs(border.high)) == pytest.approx(0, abs=1e-12)
    assert not student(x - interval.mean * y).excludes_zero


def test_fieller_of_a_constant_ratio_has_no_width():
    y = certain([0.5, 0.6, 0.55])
    assert fieller(0.5 * y, y) == Interval(0.5, pytest.approx(0.5), pytest.approx(0.5), 3)


def test_fieller_without_a_denominator_is_null():
    assert fieller(certain([1.0, 2.0, 3.0]), certain([-1.0, 0.1, 1.2])).why == "the denominator is not clear of 0"
    assert fieller(certain([1.0, math.inf, 3.0]), certain([1.0, 1.1, 1.2])).mean is None


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 10))
def test_fieller_does_not_depend_on_the_unit(seed, scale):
    generator = np.random.default_rng(seed)
    x, y = generator.normal(0.3, 0.1, (20, 5)), generator.normal(1.0, 0.1, (20, 5))
    one, other = fieller(x, y), fieller(scale * x, scale * y)
    assert [other.low, other.high] == pytest.approx([one.low, one.high], rel=1e-6, abs=1e-9)


def simulated(seeds, *, studies=600, items=40):
    """Studies whose truth is 0.6: an item's chance of being right varies over items, and over seeds by 0.1."""
    generator = np.random.default_rng(seeds)
    weights = item_weights("simulation", items, 100)
    for _ in range(studies):
        easy = generator.normal(0, 0.25, items)
        level = 0.6 + generator.normal(0, 0.1, seeds)
        yield draws("mean", list((easy[None] + level[:, None])[..., None]), weights)


@pytest.mark.parametrize("seeds", [3, 5])
def test_student_interval_covers_the_truth(seeds):
    intervals = [student(quantity) for quantity in simulated(seeds)]
    covered = np.mean([interval.low <= 0.6 <= interval.high for interval in intervals])
    # 600 studies: standard error 0.009. Each noise has its own quantile, which is right at both ends and wide between.
    assert 0.93 <= covered <= 0.99


def test_items_only_interval_covers_the_truth_of_its_seeds():
    generator = np.random.default_rng(0)
    weights = item_weights("simulation", 60, 200)
    covered = []
    for _ in range(400):
        interval = student(draws("mean", [(generator.random((60, 1)) < 0.7).astype(float)], weights))
        covered.append(interval.low <= 0.7 <= interval.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.035)


def test_fieller_interval_covers_the_true_ratio():
    generator = np.random.default_rng(3)
    covered = []
    for _ in range(1500):
        y = generator.normal(0.3, 0.06, 5)
        x = 0.4 * y + generator.normal(0, 0.02, 5)
        interval = fieller(certain(x), certain(y))
        covered.append(interval.mean is None or interval.low <= 0.4 <= interval.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_covariances_by_hand():
    x, y = np.array([[1.0, 2.0, 4.0]] * 3), np.array([[2.0, 1.0, 5.0]] * 3)
    assert seed_covariance(x, y) == pytest.approx(np.cov(x[0], y[0]) / 3)
    assert (item_covariance(x, y) == 0).all()
    # seed means of the replicates 1.9 and 2.1, and twice that: 0.02, 0.04, 0.08
    x = np.array([[2.0] * 2, [1.9] * 2, [2.1] * 2])
    assert item_covariance(x, 2 * x) == pytest.approx(np.array([[0.02, 0.04], [0.04, 0.08]]))
    assert (seed_covariance(x) == 0).all()  # two seeds say nothing


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 8), st.floats(0.01, 10))
def test_p_is_the_level_at_which_the_interval_ends_at_zero(seed, seeds, noise):
    generator = np.random.default_rng(seed)
    quantity = generator.normal(0, 1, (1, seeds)) + noise * generator.normal(0, 1, (30, 1))
    p = p_value(quantity)
    t, z = stats.t.isf(p / 2, seeds - 1), stats.norm.isf(p / 2)
    reach = math.sqrt(t * t * seed_covariance(quantity)[0, 0] + z * z * item_covariance(quantity)[0, 0])
    assert reach == pytest.approx(abs(quantity[0].mean()), rel=1e-4)
    assert (p < 0.05) == student(quantity).excludes_zero


def test_p_of_items_alone_agrees_with_scipy_and_very_small_ones_have_a_floor():
    items_only = np.array([[2.0] * 3, [1.0] * 3, [3.0] * 3])  # v = 2
    assert p_value(items_only) == pytest.approx(2 * stats.norm.sf(2 / math.sqrt(2)))
    both = np.array([[99.9, 100.0, 100.1], [99.8, 99.9, 100.0], [100.0, 100.1, 100.2]]) * 1e9
    assert 0 < p_value(both) < 1e-3
    assert p_value(np.array([[100.0] * 29 + [100.001], *([[100.0] * 30, [100.1] * 30])])) < 3e-12


def test_leaving_seeds_out_of_a_mean_gives_student():
    values = np.array([0.3, 0.1, 0.45, 0.2])
    without = np.array([np.delete(values, seed).mean() for seed in range(4)])
    found = student(with_spread(np.full(5, values.mean()), without))
    assert found == Interval(
        *(pytest.approx(x) for x in (student(certain(values)).json()[k] for k in ("mean", "low", "high"))), 4
    )


def test_leaving_seeds_out_keeps_the_noise_of_items():
    assert item_covariance(with_spread(np.array([2.0, 1.9, 2.1]), np.ones(3)))[0, 0] == pytest.approx(0.02)
