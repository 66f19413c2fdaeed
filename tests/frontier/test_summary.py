"""The numbers on test, by hand."""

import dataclasses
import json
import math

import pytest
from made_arms import MEASURES, facts, gentle_arm, plain_arm, setting, stopping_arm

from untaxed.errors import DataError
from untaxed.frontier import Arm, choose, summarise


def summary_of(*arms, about=None):
    about = about or facts()
    found = summarise(arms, about, choose(arms, about))
    json.dumps(found, allow_nan=False)
    return found


def entry(summary, name):
    return next(found for found in summary["arms"] if found["arm"] == name)


@pytest.fixture(scope="module")
def summary():
    return summary_of(plain_arm(), stopping_arm(), gentle_arm(), gentle_arm("twin"))


def test_tax_by_hand(summary):
    tax = entry(summary, "plain")["tax"]
    # step 30: facts 0.6 / 0.8 = 0.75, reading (0.5 - 0.25) / 0.5 = 0.5, mean 0.625
    assert tax["ship"] == {
        "mean": pytest.approx(0.375),
        "low": pytest.approx(0.375),
        "high": pytest.approx(0.375),
        "n": 3,
        "why": None,
    }
    assert tax["q0.95"] == {"mean": None, "low": None, "high": None, "n": 0, "why": "see early_stopping"}
    # step 20: both 0.9
    stopped = entry(summary, "early_stopping")["tax"]
    assert stopped["q0.95"]["mean"] == pytest.approx(0.1)
    assert stopped["ship"]["why"] == "see plain"
    # facts 0.78 / 0.8 = 0.975, reading 0.98
    assert entry(summary, "gentle")["tax"]["q0.95"]["mean"] == pytest.approx(0.0225)


def test_beyond_early_stopping_is_positive_for_less_tax(summary):
    gentle = entry(summary, "gentle")
    assert gentle["beyond_early_stopping"]["mean"] == pytest.approx(0.1 - 0.0225)
    assert gentle["against_early_stopping"] == {"better": 3, "seeds": 3, "p": 0.0, "p_holm": 0.0}
    assert entry(summary, "early_stopping")["beyond_early_stopping"]["why"] == "it is what the others are compared with"


def test_recovered_by_hand(summary):
    # report tax: plain ships at sums 0.25 / 0.5 -> 0.5; gentle 0.45 / 0.5 -> 0.1; early stopping 0.4 / 0.5 -> 0.2
    assert entry(summary, "gentle")["recovered"]["mean"] == pytest.approx(1 - 0.1 / 0.5)
    assert entry(summary, "early_stopping")["recovered"]["mean"] == pytest.approx(1 - 0.2 / 0.5)
    assert entry(summary, "plain")["recovered"]["why"] == "see early_stopping"
    assert entry(summary, "plain")["report_tax"]["ship"]["mean"] == pytest.approx(0.5)


def test_area_by_hand(summary):
    # gentle: one setting, share 0.68 / 0.7, retention 0.9775
    assert entry(summary, "gentle")["area"]["mean"] == pytest.approx(0.68 / 0.7 * 0.9775)
    # plain's checkpoints: all of it up to 3/7, then 0.9
    assert entry(summary, "early_stopping")["area"]["mean"] == pytest.approx(3 / 7 + (1 - 3 / 7) * 0.9)


def test_what_an_arm_is_shown_at(summary):
    gentle, plain = entry(summary, "gentle"), entry(summary, "plain")
    assert gentle["shown"] == {"choice": "q0.95", "setting": "step 20"}
    assert plain["shown"] == {"choice": "ship", "setting": "step 30"}
    assert plain["reward"]["gold"]["mean"] == pytest.approx(0.7)
    assert plain["share"]["mean"] == pytest.approx(1)
    assert plain["abilities"]["reading"]["loss"]["mean"] == pytest.approx(0.25)
    assert plain["abilities"]["reading"]["retention"]["mean"] == pytest.approx(0.5)
    assert plain["drift"]["forward_kl"]["mean"] == 0
    assert (plain["runs"], plain["settings"], plain["seconds"]["mean"]) == (3, 3, pytest.approx(11))
    assert entry(summary, "early_stopping")["seconds"]["why"] == "no run of its own"


def test_points_have_one_owner(summary):
    roles = {
        name: {p["setting"]: p["chosen_as"] for p in entry(summary, name)["points"]}
        for name in ("plain", "early_stopping")
    }
    assert roles["plain"] == {"step 30": ["ship", "last"]}
    assert roles["early_stopping"] == {"step 20": ["q0.5", "q0.8", "q0.95", "area"], "step 10": ["area"]}


def test_initial_stands_beside(summary):
    facts_ability = summary["initial"]["abilities"]["facts"]
    assert (facts_ability["mean"], facts_ability["why"]) == (pytest.approx(0.8), "items only")
    assert summary["gain"]["mean"] == pytest.approx(0.7)
    assert (summary["seeds"], summary["reward"]) == (3, "gold")


def test_verdict_names_the_best_and_how_many_beat(summary):
    assert summary["verdict"] == (
        "gentle beats early stopping at matched reward 0.95: its tax is 0.077 lower (95 % interval 0.077 to 0.077; "
        "in 3 of 3 seeds); 2 of 2 arms beat it after Holm's correction."
    )
    assert summary["caveats"] == [
        "Plain alignment, shipped at its highest proxy reward, pays a tax of 0.375 (95 % interval 0.375 to 0.375).",
        "2 arms were compared with early stopping; still clear of zero after Holm's correction for that number: "
        "gentle, twin.",
    ]


def test_the_best_of_several_wins_only_where_their_number_allows():
    """Seeds move the tax by 0.039 / 0.8 / 2, s = 0.0244: t = 0.0775 sqrt(3) / s = 5.51, p = 0.031, of three 0.094."""
    still = dict.fromkeys(["proxy", "gold", "reading", "sums"], 0)
    arms = [gentle_arm(name, spread=0.039, shift=still) for name in ("one", "two", "three")]
    found = summary_of(plain_arm(), *arms)
    assert found["verdict"] == (
        "Nothing beats early stopping at matched reward 0.95: the best of 3 arms, one, has a tax 0.077 lower "
        "(95 % interval 0.017 to 0.138 by itself, and not clear of zero after Holm's correction for 3 compared)."
    )
    assert found["caveats"][1] == (
        "3 arms were compared with early stopping; still clear of zero after Holm's correction for that number: none; "
        "only by themselves: one, two, three."
    )
    alone = summary_of(plain_arm(), arms[0])["verdict"]
    assert alone.startswith("one beats early stopping")
    mixed = summary_of(plain_arm(), *arms, gentle_arm("steady"))
    assert mixed["verdict"].startswith("steady beats early stopping")
    assert mixed["verdict"].endswith("; 1 of 4 arms beat it after Holm's correction.")


def test_intervals_come_from_the_seeds():
    # seeds at -0.05, 0, +0.05 in facts alone: tax moves by 0.05 / 0.8 / 2 = 0.03125 a step, s = 0.03125
    arm = gentle_arm(spread=0.05, shift=dict.fromkeys(["proxy", "gold", "reading", "sums"], 0))
    tax = entry(summary_of(plain_arm(), arm), "gentle")["tax"]["q0.95"]
    # half-width t(0.975, 2) s / sqrt(3) = 4.302653 * 0.03125 / 1.732051 = 0.077630
    assert tax["high"] - tax["mean"] == pytest.approx(0.077630, abs=1e-6)


def test_item_noise_widens_intervals_and_that_of_initial_counts():
    def half(**noise):
        number = entry(summary_of(plain_arm(), gentle_arm(), about=facts(**noise)), "gentle")["tax"]["q0.95"]
        return number["high"] - number["low"]

    assert half() == pytest.approx(0, abs=1e-12)
    assert half(noise=0.1) > 0.01


def test_nothing_beats_early_stopping():
    stopped = {"proxy": 0.9, "gold": 0.8, "facts": 0.71, "reading": 0.70, "sums": 0.4}
    same = Arm("same", [], [setting("step 20", stopped, spread=0.02)])
    assert summary_of(plain_arm(), stopping_arm(), same)["verdict"] == (
        # facts 0.71 / 0.8 = 0.8875: tax 0.10625 against 0.1. A seed moves it by 0.02 (1 / 0.8 + 1 / 0.5) / 2 = 0.0325,
        # half-width 4.302653 * 0.0325 / sqrt(3) = 0.080734: from -0.074484 to 0.086984
        "Nothing beats early stopping at matched reward 0.95: the only arm compared, same, has a tax 0.006 higher "
        "(95 % interval −0.074 to 0.087, which includes no difference)."
    )


def test_pairs_are_the_seeds_that_both_have():
    arm = gentle_arm(seeds=(1, 2, 7))
    found = entry(summary_of(plain_arm(), arm), "gentle")
    assert found["tax"]["q0.95"]["n"] == 3
    assert (found["beyond_early_stopping"]["n"], found["beyond_early_stopping"]["why"]) == (2, "items only, 2 seeds")


def test_no_common_seed_is_null_with_the_reason():
    found = summary_of(plain_arm(), gentle_arm(seeds=(7, 8, 9)))
    assert entry(found, "gentle")["beyond_early_stopping"]["why"] == "not measured on test"
    assert found["verdict"].startswith("No verdict: no arm can be compared with early stopping at matched reward 0.95")


def test_points_whose_weights_are_gone_are_null_with_the_reason():
    found = summary_of(plain_arm(), gentle_arm(test=False))
    gentle = entry(found, "gentle")
    for number in (gentle["tax"]["q0.95"], gentle["recovered"], gentle["area"], gentle["reward"]["gold"]):
        assert (number["mean"], number["why"]) == (None, "not measured on test")


def test_plain_untested_is_no_verdict():
    found = summary_of(plain_arm(test=False), gentle_arm())
    assert found["verdict"] == "No verdict: plain's shipping point was not measured on test."
    assert entry(found, "gentle")["tax"]["q0.95"]["why"] == "plain's shipping point was not measured on test"
    assert entry(found, "gentle")["tax"]["ship"]["mean"] is not None


def test_gain_that_is_not_clear_matches_nothing():
    found = summary_of(plain_arm(spread=0.9), gentle_arm())
    assert found["verdict"].startswith(
        "No verdict: plain alignment's reward gain is not clear of zero (0.700, 95 % interval"
    )
    assert entry(found, "gentle")["area"]["why"] == "plain's reward gain is not clear of 0"
    assert entry(found, "gentle")["recovered"]["why"] == "plain's reward gain is not clear of 0"


def test_no_tax_to_recover():
    numbers = {"proxy": 1.0, "gold": 0.7, "sums": 0.5}
    free = Arm("plain", [], [setting("step 30", numbers)], plain=True)
    assert entry(summary_of(free, gentle_arm()), "gentle")["recovered"]["why"] == "no tax to recover"
    better = Arm("plain", [], [setting("step 30", {**numbers, "sums": 0.6})], plain=True)
    assert entry(summary_of(better, gentle_arm()), "gentle")["recovered"]["why"] == "no tax to recover"


def test_studies_without_a_plain_arm_or_without_rewards_still_have_numbers():
    found = summary_of(gentle_arm())
    assert found["verdict"] == "No verdict: there is no plain arm."
    assert entry(found, "gentle")["tax"]["ship"]["mean"] == pytest.approx(0.0225)
    assert summary_of(plain_arm(), gentle_arm(), about=facts(MEASURES[2:]))["reward"] is None


def test_failed_arms_are_listed_as_not_compared():
    found = summary_of(plain_arm(), gentle_arm(), Arm("broken", [], []))
    assert "Not compared: broken: no finished runs." in found["caveats"]
    assert entry(found, "broken")["shown"] == {"choice": None, "setting": None}


def test_left_out_abilities_are_in_no_tax():
    found = summary_of(plain_arm(), gentle_arm(), about=facts(reading=0.25))
    assert [left["ability"] for left in found["left_out"]] == ["reading"]
    assert entry(found, "gentle")["tax"]["ship"]["mean"] == pytest.approx(0.025)
    assert entry(found, "gentle")["abilities"]["reading"]["retention"]["why"].startswith("left out")


def test_one_seed_says_items_only():
    found = summary_of(
        *(
            dataclasses.replace(
                arm, settings=[dataclasses.replace(one, points={0: one.points[0]}) for one in arm.settings]
            )
            for arm in (plain_arm(), gentle_arm())
        ),
        about=facts(seeds=(0,)),
    )
    assert entry(found, "gentle")["tax"]["q0.95"]["why"] == "items only, 1 seed"
    assert "0.077 lower (95 % interval 0.077 to 0.077 over test items only; in 1 of 1 seed)" in found["verdict"]
    assert found["caveats"][-1].startswith("With 1 seed the intervals cover the noise of the test items only")


def test_worse_than_early_stopping_is_said_so():
    worse = Arm("worse", [], [setting("step 20", {"proxy": 0.9, "gold": 0.8, "facts": 0.4, "reading": 0.5})])
    # facts 0.4 / 0.8, reading 0.25 / 0.5: tax 0.5 against 0.1
    assert summary_of(plain_arm(), worse)["verdict"] == (
        "Nothing beats early stopping at matched reward 0.95: the only arm compared, worse, has a tax 0.400 higher "
        "(95 % interval 0.400 to 0.400)."
    )


def test_few_runs_have_no_interval_of_their_time():
    found = entry(summary_of(plain_arm(), dataclasses.replace(gentle_arm(), seconds=(4.0, 6.0))), "gentle")
    assert found["seconds"] == {"mean": 5.0, "low": None, "high": None, "n": 2, "why": "fewer than 3 runs"}


def test_resamples_without_a_gain_are_no_warning_and_no_number():
    """Plain's gain comes from 4 of 40 items: clear of 0 over items, yet 0.9^40 = 1.5 % of the resamples have none."""
    arm = Arm("plain", [], [setting("step 30", {"proxy": 1.0, "gold": 0.6}, seeds=(0,))], plain=True)
    [point] = arm.settings[0].points.values()
    object.__setattr__(point, "scores", lambda split, key, whole=point.scores: _in_four_items(whole(split, key), key))
    found = summary_of(arm, stopping_arm(), about=facts(seeds=(0,)))
    assert found["gain"]["low"] > 0
    assert entry(found, "early_stopping")["area"]["why"] == "not a finite number on every resample of the items"
    # it is plain's own point, all of plain's gain on every resample
    assert entry(found, "early_stopping")["share"]["low"] == pytest.approx(1)


def _in_four_items(scores, key):
    if key == "reward.gold":
        scores[4:], scores[:4] = 0, scores.sum() / 4
    return scores


def test_other_items_than_initial_are_refused():
    arm = gentle_arm()
    for point in arm.settings[0].points.values():
        whole = point.scores
        object.__setattr__(point, "scores", lambda split, key, whole=whole: whole(split, key)[:-1])
    with pytest.raises(DataError, match=r"39 test items at seed 0, point 'step-20', but 40 at initial"):
        summary_of(plain_arm(), arm)


# --- reference curves -------------------------------------------------------------------------------------------------


def curve_arm():
    """As much reward as plain ships with and no tax, at 8 and at 32 times the decoding; less reward at once."""
    numbers = {"gold": 0.9, "facts": 0.8, "reading": 0.75, "sums": 0.5}
    why = {"abilities": "0 by construction", "drift.forward_kl": "no closed form"}
    settings = []
    for n, proxy, gold in ((1, 0.1, 0.1), (8, 0.95, 0.7), (32, 1.2, 0.9)):
        made = setting(f"n={n}", {**numbers, "proxy": proxy, "gold": gold, "forward_kl": math.nan}, step=0)
        points = {seed: dataclasses.replace(point, why=why) for seed, point in made.points.items()}
        settings.append(dataclasses.replace(made, points=points, decoding=n))
    return Arm("curve", [{"curve": {}}], settings, yardstick="a reference curve: n times the decoding")


def test_a_reference_curve_wins_nothing_and_is_shown_whole():
    summary = summary_of(plain_arm(), stopping_arm(), gentle_arm(), curve_arm())
    alone = summary_of(plain_arm(), stopping_arm(), gentle_arm())
    assert summary["verdict"] == alone["verdict"]
    assert summary["caveats"] == [*alone["caveats"], "curve is a reference curve: n times the decoding."]
    curve = entry(summary, "curve")
    assert curve["against_early_stopping"].keys() == {"better", "seeds", "p"}  # no correction for a comparison with it
    assert curve["beyond_early_stopping"]["mean"] == pytest.approx(0.1)
    assert curve["beyond_early_stopping"]["why"] == "a reference curve, left out of the verdict"
    assert {point["setting"]: point["chosen_as"][-1] for point in curve["points"]} == dict.fromkeys(
        ["n=1", "n=8", "n=32"], "curve"
    )
    assert curve["chosen"]["q0.95"]["setting"] == "n=8"  # of equal taxes the one that decodes least
    assert curve["decoding"]["mean"] == 8
    assert curve["tax"]["q0.95"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 3, "why": "0 by construction"}
    assert curve["drift"]["forward_kl"] == {"mean": None, "low": None, "high": None, "n": 0, "why": "no closed form"}


def test_a_study_of_reference_curves_alone_has_no_verdict():
    summary = summary_of(plain_arm(), stopping_arm(), curve_arm())
    assert summary["verdict"] == "No verdict: no arm can be compared with early stopping at matched reward 0.95."


def test_abilities_carry_which_of_them_really_fell():
    """Seeds at -s, 0, +s about the numbers: t = loss / (s / sqrt(3)) with two degrees of freedom."""
    plain = plain_arm(spread=0.02, shift={"proxy": 0, "gold": 0})
    found = entry(summary_of(plain), "plain")["abilities"]
    # losses 0.2, 0.25, 0.25 at s = 0.02: t = 17.3, 21.7, 21.7, p = 0.003317, 0.0021265, 0.0021265
    assert [found[name]["p"] for name in ("facts", "reading", "sums")] == [
        pytest.approx(0.003317, abs=1e-6),
        pytest.approx(0.0021265, abs=1e-6),
        pytest.approx(0.0021265, abs=1e-6),
    ]
    # sorted 0.0021265, 0.0021265, 0.003317 times 3/1, 3/2, 3/3: 0.00638 and 0.00319, lowered to 0.00319
    assert found["facts"]["p_adjusted"] == pytest.approx(0.003317, abs=1e-6)
    assert found["sums"]["p_adjusted"] == pytest.approx(1.5 * 0.0021265, abs=1e-6)
    assert {ability["real"] for ability in found.values()} == {"drop"}


def test_left_out_abilities_are_neither_tested_nor_counted():
    found = entry(summary_of(plain_arm(), about=facts(reading=0.25)), "plain")["abilities"]
    assert (found["reading"]["p"], found["reading"]["p_adjusted"], found["reading"]["real"]) == (None, None, None)
    assert found["facts"]["real"] == "drop"
    assert entry(summary_of(plain_arm(test=False)), "plain")["abilities"]["facts"]["real"] is None


def gains(plain, other):
    """Plain's gold reward and an arm's, seed by seed; abilities alike."""

    def arm(name, found, step, **more):
        made = {
            seed: setting(f"step {step}", {"proxy": 1.0, "gold": gold}, seeds=(seed,))
            for seed, gold in enumerate(found)
        }
        points = {seed: one.points[seed] for seed, one in made.items()}
        return Arm(name, [], [dataclasses.replace(made[0], points=points)], **more)

    return summary_of(arm("plain", plain, 30, plain=True), arm("other", other, 30))


def test_a_share_is_a_paired_ratio():
    # Fieller's interval of the means of (0.6, 0.7, 0.8) and (0.9, 1.0, 1.1), differences of 0.3 throughout:
    # s² / n of both 0.01 / 3, t² = 18.512821; a = 1 - 0.061709, b = 0.7 - 0.061709, c = 0.49 - 0.061709:
    # (0.638291 +- sqrt(0.407415 - 0.401862)) / 0.938291
    share = entry(gains([0.9, 1.0, 1.1], [0.6, 0.7, 0.8]), "other")["share"]
    assert [share[key] for key in ("low", "mean", "high")] == pytest.approx([0.600850, 0.7, 0.759690], abs=1e-5)
    # what rises and falls with plain's gain has a ratio without width
    proportional = entry(gains([0.9, 1.0, 1.1], [0.45, 0.5, 0.55]), "other")["share"]
    assert [proportional[key] for key in ("low", "mean", "high")] == pytest.approx([0.5] * 3)
    assert entry(gains([0.9, 1.0, 1.1], [0.45, 0.5, 0.55]), "plain")["share"]["high"] == 1


def test_an_area_carries_the_spread_of_plains_gain():
    # one setting that keeps everything: the area is its share, cut at 1. Its gain is 0.5 at every seed, so that all
    # of the spread is plain's: leaving out a seed gives 0.5 / 1.05, 0.5 / 1.0, 0.5 / 0.95
    area = entry(gains([0.9, 1.0, 1.1], [0.5, 0.5, 0.5]), "other")["area"]
    without = [0.5 / 1.05, 0.5, 0.5 / 0.95]
    mean = sum(without) / 3
    error = (2 / 3 * sum((one - mean) ** 2 for one in without)) ** 0.5
    assert area["mean"] == pytest.approx(0.5)
    assert area["high"] - area["mean"] == pytest.approx(4.302653 * error, rel=1e-6)


def test_no_seed_in_common_with_plain_is_no_share():
    found = entry(summary_of(plain_arm(), gentle_arm(seeds=(7, 8, 9))), "gentle")
    assert (found["share"]["mean"], found["share"]["why"]) == (None, "not measured on test")
