"""The area under a frontier: by hand, against a slow twin on a grid, and against moocore's hypervolume."""

import math
from itertools import pairwise

import moocore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from untaxed.frontier import area, staircase

fractions = st.floats(-0.5, 1.5).map(lambda x: round(x, 3))
anything = st.floats(-0.5, 1.5)
settings_of_an_arm = st.lists(st.tuples(fractions, fractions), max_size=8)


def on_a_grid(shares, retentions, steps=4000):
    """For every reward share asked for, the first setting that has it."""
    total = 0.0
    for x in (np.arange(steps) + 0.5) / steps:
        enough = [kept for share, kept in zip(shares, retentions) if share >= x]
        total += min(max(enough[0], 0.0), 1.0) if enough else 0.0
    return total / steps


def hypervolume(points):
    """moocore's, of the points cut to the unit square, against (0, 0); it takes no empty set."""
    inside = np.clip(np.array([(0.0, 0.0), *points]), 0, 1)
    return moocore.hypervolume(inside, ref=[0.0, 0.0], maximise=True)


def of_front(points):
    shares, kept = np.array([x for x, _ in points]), np.array([y for _, y in points])
    front = staircase(shares, kept)
    return float(area(shares[front], kept[front]))


def test_by_hand():
    # 0.4 of the way at 0.9, from there to 0.8 at 0.6, beyond nobody gets: 0.4 * 0.9 + 0.4 * 0.6 + 0.2 * 0 = 0.6
    assert area(np.array([0.4, 0.8]), np.array([0.9, 0.6])) == pytest.approx(0.6)


def test_free_alignment_is_one_and_no_reward_is_zero():
    assert of_front([(1.2, 1.1)]) == 1.0
    assert of_front([(-0.1, 1.0), (0.0, 1.0)]) == 0.0
    assert of_front([]) == 0.0


def test_on_test_the_order_of_validation_stands():
    # validation preferred the first; on test it also gets further, so that the second is never asked
    assert area(np.array([0.9, 0.5]), np.array([0.7, 0.95])) == pytest.approx(0.9 * 0.7)


def test_leading_axes_are_kept():
    shares = np.array([[0.4, 0.8], [1.0, 1.0]])
    assert area(shares, np.array([0.9, 0.6])) == pytest.approx([0.6, 0.9])


@settings(deadline=None)
@given(settings_of_an_arm)
def test_agrees_with_a_grid(points):
    shares, kept = [x for x, _ in points], [y for _, y in points]
    assert area(np.array(shares), np.array(kept)) == pytest.approx(on_a_grid(shares, kept), abs=2e-3)


@settings(deadline=None)
@given(settings_of_an_arm)
def test_front_is_the_hypervolume_of_all_points(points):
    assert of_front(points) == pytest.approx(hypervolume(points), abs=1e-12)


@settings(deadline=None)
@given(settings_of_an_arm, fractions, fractions)
def test_another_setting_never_lowers_the_area(points, share, kept):
    assert of_front([*points, (share, kept)]) >= of_front(points) - 1e-12


@settings(deadline=None)
@given(st.lists(st.tuples(anything, anything), max_size=12))
def test_front_is_the_hypervolume_of_points_that_are_not_rounded(points):
    assert of_front(points) == pytest.approx(hypervolume(points), abs=1e-12)


@settings(deadline=None)
@given(settings_of_an_arm, st.randoms())
def test_neither_order_nor_repeats_nor_ties_change_the_area(points, random):
    again = [*points, *points]
    random.shuffle(again)
    assert of_front(again) == pytest.approx(of_front(points), abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_settings_without_finite_numbers_are_refused(bad):
    for shares, kept in (([0.5, bad], [0.9, 0.8]), ([0.5, 0.6], [bad, 0.8])):
        with pytest.raises(ValueError, match="must be finite"):
            staircase(shares, kept)


def test_a_resample_without_a_number_has_no_area():
    assert np.isnan(area(np.array([[0.5, 1.0], [math.nan, 1.0]]), np.array([0.9, 0.6]))).tolist() == [False, True]


@settings(deadline=None)
@given(settings_of_an_arm)
def test_front_falls_in_retention_and_rises_in_share(points):
    front = [points[index] for index in staircase([x for x, _ in points], [y for _, y in points])]
    assert all(a[0] < b[0] and a[1] >= b[1] for a, b in pairwise(front))
    assert all(share > 0 for share, _ in front)
