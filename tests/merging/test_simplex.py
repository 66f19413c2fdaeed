from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference.heterogeneous import projection

from untaxed.merging._simplex import mean_of, project, random_ratios, tangent

SIZES = st.integers(1, 12)
ANY = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def problems(draw: st.DrawFn, values: st.SearchStrategy[float] = ANY) -> tuple[list[float], float, list[float]]:
    size = draw(SIZES)
    numbers = draw(st.lists(values, min_size=size, max_size=size))
    weights = draw(st.lists(st.floats(1, 1e4), min_size=size, max_size=size))
    return numbers, draw(st.floats(0, 1)), weights


@given(problems())
@settings(max_examples=300, deadline=None)
def test_any_values_get_the_asked_mean_within_their_bounds(problem: tuple[list[float], float, list[float]]) -> None:
    values, share, weights = problem
    ratios = project(values, share, weights=weights)
    assert ((ratios >= 0) & (ratios <= 1)).all()
    assert abs(np.average(ratios, weights=weights) - share) < 1e-9


@given(problems(st.floats(-3, 3)), st.floats(0, 0.4), st.floats(0.6, 1))
@settings(max_examples=200, deadline=None)
def test_the_projection_is_the_slow_twins(
    problem: tuple[list[float], float, list[float]], low: float, high: float
) -> None:
    values, share, weights = problem
    assume(low <= share <= high)
    found = project(values, share, weights=weights, low=low, high=high)
    assert np.allclose(found, projection(values, share, weights, low, high), atol=1e-8)


def test_worked_numbers() -> None:
    # two ratios give up the same: 0.9 - 0.3 = 0.6, 0.1 - 0.3 < 0; then 0.9 - t = 0.6 with the others at 0
    assert project([0.9, 0.1, -0.4], 0.2).tolist() == pytest.approx([0.6, 0.0, 0.0])
    # weights 3 and 1 of sum 1: (v - t/4 * 3, v - t/4); the mean 3/4 x + 1/4 y = 0.5 at t = 0.8
    assert project([1.0, 1.0], 0.5, weights=[3, 1]).tolist() == pytest.approx([0.4, 0.8])


@given(SIZES, st.floats(0, 1), st.floats(-5, 5))
@settings(deadline=None)
def test_equal_values_give_the_share_itself(size: int, share: float, value: float) -> None:
    assert project([value] * size, share).tolist() == [share] * size
    assert mean_of([share] * size, weights=list(range(1, size + 1))) == share


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_ends_leave_no_choice(share: float) -> None:
    assert project([0.3, -2.0, 7.0], share, weights=[1, 2, 3]).tolist() == [share] * 3


def test_a_mean_that_bounds_exclude_is_refused() -> None:
    with pytest.raises(ValueError, match=r"within \[0.0, 0.5\] cannot have the mean initial_share = 0.6"):
        project([0.1, 0.2], 0.6, high=0.5)
    with pytest.raises(ValueError, match=r"initial_share must be in \[0, 1\], got 1.2"):
        project([0.1, 0.2], 1.2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        project([0.1, value], 0.2)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be 2 positive numbers"):
        project([0.1, 0.2], 0.2, weights=weights)


def test_a_tangent_gradient_does_not_change_the_mean() -> None:
    flat = tangent(np.array([3.0, -1.0, 0.5]), weights=[1, 2, 3])
    assert abs(np.average(flat, weights=[1, 2, 3])) < 1e-15


@pytest.mark.parametrize(("blocks", "share"), [(3, 0.2), (9, 0.6), (1, 0.3)])
def test_random_ratios_fill_the_simplex_evenly(blocks: int, share: float) -> None:
    generator = np.random.default_rng(0)
    drawn = np.stack([random_ratios(generator, share, blocks=blocks) for _ in range(400)])
    assert np.allclose(drawn.mean(axis=1), share, atol=1e-12)
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert np.allclose(drawn.mean(axis=0), share, atol=0.06)  # no block is preferred
    if blocks == 3:  # share 0.2: r = 0.6 * Dirichlet(1, 1, 1), whose median is 1 - sqrt(1/2)
        assert np.median(drawn) == pytest.approx(0.6 * (1 - math.sqrt(0.5)), abs=0.02)
