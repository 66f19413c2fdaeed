"""What can be detected: by hand, against scipy's power, and by simulating the tests themselves."""

import math

import numpy as np
import pytest
from scipy import stats

from untaxed.measuring.paired import paired_difference
from untaxed.measuring.planning import (
    Planned,
    expected_deviation,
    items_for_tax,
    items_needed,
    minimum_detectable,
    pilot_deviation,
    planned,
    quantiles,
    worst_deviation,
)


def test_the_least_loss_by_hand():
    # (1.959964 + 0.841621) * 0.4 / sqrt(400) = 2.801585 * 0.02 = 0.056032; over 0.8 above chance 0.070040
    found = minimum_detectable(Planned(items=400, deviation=0.4, room=0.8))
    assert (found.loss, found.tax) == (pytest.approx(0.056032, abs=1e-6), pytest.approx(0.070040, abs=1e-6))
    assert str(found) == "a loss of 0.056 (a tax of 0.070) is seen on 400 items in 80 % of cases"


def test_several_abilities_by_hand():
    # errors 0.02 / 0.8 = 0.025 and 0.04 / 0.5 = 0.08: 2.801585 * sqrt(0.000625 + 0.0064) / 2 = 0.117408
    parts = [Planned(400, 0.4, 0.8), Planned(100, 0.4, 0.5)]
    found = minimum_detectable(parts)
    assert (found.loss, found.tax, found.items) == (None, pytest.approx(0.117408, abs=1e-6), 500)
    assert str(found) == "a tax of 0.117 is seen on 500 items in 80 % of cases"
    assert minimum_detectable([*parts, Planned(100, 0.4)]).tax is None


def test_it_has_the_power_of_a_paired_t_test():
    for items in (100, 400):
        loss = minimum_detectable(Planned(items, 0.4)).loss
        shift = loss / (0.4 / math.sqrt(items))
        power = stats.nct.sf(stats.t.ppf(0.975, items - 1), items - 1, shift)
        assert power == pytest.approx(0.8, abs=0.01)


def test_it_is_found_as_often_as_it_says():
    """Answers that flip: 12 % each way and the least detectable loss on top, 150 items, by the paired bootstrap."""
    items, generator, found = 150, np.random.default_rng(0), []
    deviation = math.sqrt(0.24)
    loss = minimum_detectable(Planned(items, deviation)).loss
    for _ in range(300):
        flips = generator.choice([-1.0, 0.0, 1.0], items, p=[0.12 + loss / 2, 0.76, 0.12 - loss / 2])
        before = np.where(flips == 0, generator.integers(0, 2, items), flips < 0).astype(float)[:, None]
        p = paired_difference("mean", [before], [before + flips[:, None]], over="items", replicates=100).p
        found.append(p < 0.05)
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)  # standard error 0.023


def test_flips_give_the_correlation_that_gives_the_deviation():
    """a = 0.8, f = 0.1 flips, as many each way: r = 1 - 0.1 / (2 * 0.8 * 0.2) = 0.6875; a loss has the variance f."""
    right = np.arange(1000) < 800
    flipped = right.copy()
    flipped[[*range(50), *range(800, 850)]] ^= True
    before, after = (one.astype(float)[:, None] for one in (right, flipped))
    assert np.corrcoef(before[:, 0], after[:, 0])[0, 1] == pytest.approx(0.6875)
    assert expected_deviation("mean", before, 0.6875) == pytest.approx(math.sqrt(0.1), rel=1e-3)
    assert pilot_deviation("mean", before, after) == pytest.approx(math.sqrt(0.1), rel=1e-3)


def test_the_worst_case_is_an_accuracy_of_one_half():
    half = (np.arange(1000) % 2.0)[:, None]
    assert expected_deviation("mean", half, 0.3) == pytest.approx(worst_deviation(0.3), rel=1e-3)
    for accuracy in (0.1, 0.7, 0.95):
        assert expected_deviation("mean", (np.arange(1000) < 1000 * accuracy)[:, None] * 1.0) < worst_deviation()


def test_statistics_that_are_no_means_go_by_their_bootstrap():
    """As many tokens in every text: the token mean is a mean, and the perplexity e^x steeper by its own value."""
    generator = np.random.default_rng(0)
    nats = generator.normal(2.0, 0.2, 500)
    scores = np.stack([10 * nats, np.full(500, 10.0)], axis=1)
    plain = expected_deviation("mean", nats[:, None])
    assert expected_deviation("token_mean", scores) == pytest.approx(plain, rel=0.06)
    assert expected_deviation("perplexity", scores) == pytest.approx(plain * math.exp(nats.mean()), rel=0.06)
    after = scores + np.stack([10 * generator.normal(0.1, 0.05, 500), np.zeros(500)], axis=1)
    assert pilot_deviation("token_mean", scores, after) == pytest.approx(0.05, rel=0.1)


def test_items_needed_are_those_that_detect_it():
    # (2.801585 * 0.4 / 0.02)^2 = 3139.55
    assert items_needed(deviation=0.4, loss=0.02) == 3140
    assert minimum_detectable(Planned(3140, 0.4)).loss <= 0.02 < minimum_detectable(Planned(3139, 0.4)).loss
    assert items_needed(deviation=0.0, loss=0.02) == 2


def test_items_for_a_tax_are_those_that_detect_it():
    # (2.801585 * 0.4 / (0.02 * 0.8))^2 = 4905.5
    one = Planned(400, 0.4, 0.8)
    assert items_for_tax(one, 0.02) == 4906
    # of two abilities with 400 and 100 items: 2.801585 * sqrt(0.025^2 + 0.08^2) / 2 = 0.117408 at 500 items, and
    # 500 * (0.117408 / 0.05)^2 = 2756.9
    assert items_for_tax([one, Planned(100, 0.4, 0.5)], 0.05) == pytest.approx(2757, abs=3)
    # always right: 7.848880 / (N + 7.848880) = 0.05 at N = 149.13
    assert items_for_tax(Planned(1000, 0.0, 1.0, whole=True), 0.05) == 150
    assert items_for_tax(Planned(10, 0.0, 1.0), 0.05) == 2


def test_more_power_and_a_stricter_level_need_more():
    assert quantiles() == pytest.approx(stats.norm.ppf(0.975) + stats.norm.ppf(0.8))
    assert quantiles() < quantiles(power=0.9) < quantiles(power=0.9, level=0.01)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Planned(0, 0.4), "at least one item"),
        (lambda: Planned(10, math.nan), "deviation must be 0 or more"),
        (lambda: Planned(10, 0.4, 0.0), "initial is not above chance"),
        (lambda: minimum_detectable([]), "no ability"),
        (lambda: minimum_detectable(Planned(10, 0.4), power=1.0), "power must be between 0 and 1"),
        (lambda: items_needed(0.4, 0.0), "must be above 0, got 0.0"),
        (lambda: items_needed(0.4, 0.1, level=0.0), "level must be between"),
        (lambda: items_for_tax(Planned(10, 0.4, 0.5), 0.0), "the tax to be found must be above 0"),
        (lambda: items_for_tax(Planned(10, 0.4), 0.1), "give every ability its room"),
        (lambda: worst_deviation(1.0), r"correlation must be in \[-1, 1\)"),
        (lambda: expected_deviation("mean", np.ones((1, 1))), "2 items or more"),
        (lambda: expected_deviation("mean", np.array([[1.0], [math.nan]])), "not finite"),
        (lambda: pilot_deviation("mean", np.ones((3, 1)), np.ones((4, 1))), "the same items"),
    ],
)
def test_what_has_no_answer_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_where_initial_is_always_right_a_loss_varies_by_what_it_flips():
    # 2.801585^2 = 7.848880: 7.848880 / (100 + 7.848880) = 0.072777, which varies by 0.072777 * 0.927223 = 0.067481:
    # 2.801585 * sqrt(0.067481 / 100) = 0.072777
    always = planned("mean", np.ones((100, 1)))
    assert (always.deviation, always.whole, always.room) == (0.0, True, 1.0)
    assert minimum_detectable(always).loss == pytest.approx(0.072777, abs=1e-6)
    assert minimum_detectable(Planned(100, 0.0)).loss == 0  # scores in between may all fall alike


def test_an_ability_is_planned_from_what_initial_scores():
    scores = (np.arange(400) < 300).astype(float)[:, None]
    found = planned("mean", scores, chance=0.25, correlation=0.8)
    assert (found.items, found.room, found.whole) == (400, 0.5, True)
    assert found.deviation == pytest.approx(expected_deviation("mean", scores, 0.8))
    assert not planned("mean", scores / 2).whole
    with pytest.raises(ValueError, match="not above chance"):
        planned("mean", scores, chance=0.75)
