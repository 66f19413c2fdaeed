"""p values adjusted for their number, against scipy and by hand; and how often a named drop is none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from untaxed.measuring.multiple import benjamini_hochberg, holm, real_drops
from untaxed.measuring.statistics import Interval, undefined

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.04 times 3, 2, 1 = 0.03, 0.04, 0.04
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_benjamini_hochberg_by_hand():
    # sorted 0.01, 0.02, 0.04 times 3/1, 3/2, 3/3 = 0.03, 0.03, 0.04
    assert benjamini_hochberg([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.03])
    # sorted 0.01, 0.03, 0.03, 0.2 times 4, 2, 4/3, 1 = 0.04, 0.06, 0.04, 0.2: the second is lowered to the third
    assert benjamini_hochberg([0.03, 0.2, 0.01, 0.03]) == pytest.approx([0.04, 0.2, 0.04, 0.04])
    assert benjamini_hochberg([]) == []


@settings(deadline=None)
@given(p_values)
def test_benjamini_hochberg_agrees_with_scipy(found):
    assert benjamini_hochberg(found) == pytest.approx(stats.false_discovery_control(found), abs=1e-12)


@settings(deadline=None)
@given(p_values)
def test_it_lies_between_the_raw_p_and_holms(found):
    for raw, mild, strict in zip(found, benjamini_hochberg(found), holm(found)):
        assert raw <= mild * (1 + 1e-12) <= strict * (1 + 2e-12)


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.1])
def test_what_is_no_p_is_refused(bad):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        benjamini_hochberg([0.5, bad])


def test_drops_by_hand():
    losses = {
        "facts": (Interval(0.2, 0.1, 0.3, 5), 0.001),
        "reading": (Interval(0.1, 0.0, 0.2, 5), 0.04),
        "sums": (Interval(-0.1, -0.15, -0.05, 5), 0.01),
        "riddles": (undefined("not measured on test"), None),
    }
    rows = {row.ability: row for row in real_drops(losses, {"facts": "share right"})}
    # three that count: 0.001 * 3, 0.01 * 3 / 2, 0.04
    assert [rows[name].p_adjusted for name in losses] == [pytest.approx(0.003), 0.04, pytest.approx(0.015), None]
    assert [rows[name].real for name in losses] == ["drop", "drop", "gain", None]
    assert (rows["facts"].unit, rows["sums"].unit, rows["facts"].loss.mean) == ("share right", "", 0.2)
    assert [row.real for row in real_drops(losses, level=0.01)] == ["drop", "unclear", "unclear", None]


def test_among_named_drops_few_are_none():
    """20 abilities, 5 of them really lower by 4 standard errors: of what is named at 0.05 at most 5 % is no drop."""
    generator, shares, named = np.random.default_rng(0), [], 0
    for _ in range(400):
        z = generator.normal(size=20) + np.where(np.arange(20) < 5, 4.0, 0.0)
        p_values = 2 * stats.norm.sf(abs(z))
        losses = {str(i): (Interval(x, x - 1.96, x + 1.96, 5), p) for i, (x, p) in enumerate(zip(z, p_values))}
        found = [int(row.ability) for row in real_drops(losses) if row.real in ("drop", "gain")]
        shares.append(np.mean([i >= 5 for i in found]) if found else 0.0)
        named += sum(i < 5 for i in found)
    # expected 15/20 * 0.05 = 0.0375, standard error of the mean 0.004
    assert np.mean(shares) == pytest.approx(0.0375, abs=0.015)
    assert named / (400 * 5) > 0.8
