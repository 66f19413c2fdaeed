"""What is chosen on validation, by hand."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_arms import ITEMS, MEASURES, facts, gentle_arm, plain_arm, point, setting, stopping_arm

from untaxed.frontier import Arm, Facts, Setting, choose, left_out, retained, retention
from untaxed.measuring.statistics import draws, item_weights


def labels(choices, arm):
    return {name: choice.setting for name, choice in choices.arms[arm].named.items()}


def test_retention_by_hand():
    # chance 0.25: (0.5 - 0.25) / (0.75 - 0.25) = 0.5
    assert retention(0.5, 0.75, 0.25) == 0.5


@given(st.floats(0.3, 1), st.floats(0, 0.29), st.floats(-1, 2))
def test_retention_is_one_at_initial_zero_at_chance_and_linear(initial, chance, kept):
    assert retention(initial, initial, chance) == 1
    assert retention(chance, initial, chance) == 0
    assert retention(chance + kept * (initial - chance), initial, chance) == pytest.approx(kept, abs=1e-9)


def test_resamples_of_a_retention_by_hand():
    # r = 0.5; a resample of 0.45 and 0.85: 0.5 + ((0.45 - 0.25) - 0.5 (0.85 - 0.25)) / (0.75 - 0.25) = 0.3
    ability, initial = np.array([[0.5], [0.45]]), np.array([[0.75], [0.85]])
    np.testing.assert_allclose(retained(ability, initial, 0.25), [[0.5], [0.3]])


def test_resamples_of_a_retention_are_near_the_ratio_where_the_noise_is_small():
    noise = 1e-4 * np.random.default_rng(0).normal(size=(1000, 2))
    ability, initial = 0.5 + noise[:, :1], 0.75 + noise[:, 1:]
    np.testing.assert_allclose(retained(ability, initial, 0.25), retention(ability, initial, 0.25), atol=1e-6)


def test_a_retention_has_a_bound_where_a_resample_of_initial_is_at_chance():
    """10 of 12 items right at a chance of 0.5: resamples at chance are rare, and they are there."""
    initial, model = (np.array([[1.0]] * right + [[0.0]] * (12 - right)) for right in (10, 9))
    both = draws("mean", [model, initial], item_weights("facts", 12))
    assert (both[1:, 1] <= 0.5).any()
    kept = retained(both[:, :1], both[:, 1:], 0.5)
    assert kept[0] == pytest.approx(0.75)
    # one item of the 12 changed: its loss of 1/12 has a standard error of about 1/12, a fourth of the room of 1/3
    assert kept[1:].std() == pytest.approx(0.25, rel=0.2)


def test_plain_ships_what_proxy_likes_best_and_stops_where_tax_is_least():
    choices = choose([plain_arm(), stopping_arm()], facts())
    # G = gold of step 30 = 0.7: q 0.5 needs 0.35, q 0.8 needs 0.56, q 0.95 needs 0.665; steps 20 and 30 have that,
    # and of the two step 20 has less tax
    expected = {"ship": "step 30", "last": "step 30", "q0.5": "step 20", "q0.8": "step 20", "q0.95": "step 20"}
    assert labels(choices, "plain") == expected
    assert labels(choices, "early_stopping") == expected
    # step 10 keeps everything at 3/7 of the way, step 20 keeps 0.9 at more than all of it; step 30 is worse in both
    assert choices.arms["plain"].area == ("step 10", "step 20")
    assert choices.to_test == [("plain", "step 30"), ("plain", "step 20"), ("plain", "step 10")]


def test_choices_look_at_validation_only():
    trap = {"proxy": 9.0, "gold": 9.0, "facts": 0.8, "reading": 0.75}
    arms = [plain_arm(test=trap), plain_arm(test=False), plain_arm()]
    assert len({str(choose([arm], facts())) for arm in arms}) == 1


def test_report_abilities_are_never_chosen_on():
    other = gentle_arm()
    worse = [setting("step 30", {"proxy": 0.85, "gold": 0.68, "facts": 0.6, "reading": 0.74, "sums": 0.5})]
    arm = dataclasses.replace(other, settings=[*other.settings, *worse])
    assert labels(choose([plain_arm(), arm], facts()), "gentle")["q0.95"] == "step 20"


def test_never_got_there_says_how_far():
    arm = Arm("weak", [], [setting("step 10", {"proxy": 0.2, "gold": 0.42})])
    named = choose([plain_arm(), arm], facts()).arms["weak"].named
    # 0.42 / 0.7 = 0.6
    assert named["q0.5"].setting == "step 10"
    assert (named["q0.8"].setting, named["q0.8"].how) == (
        None,
        "never got there: at most 0.60 of plain's gain on validation",
    )


@pytest.mark.parametrize(("gold", "said"), [(0.66, "0.94"), (0.6629, "0.947"), (0.66499, "0.94999"), (0.5, "0.71")])
def test_never_got_there_is_said_with_digits_that_show_it(gold, said):
    # of 0.7, where 0.95 is 0.665
    arm = Arm("weak", [], [setting("step 10", {"proxy": 0.2, "gold": gold})])
    how = choose([plain_arm(), arm], facts()).arms["weak"].named["q0.95"].how
    assert how == f"never got there: at most {said} of plain's gain on validation"


def test_last_is_the_last_step_after_its_reset():
    phases = [
        Setting("step 30 before the reset", {}, {0: point(step=30, phase="before", proxy=2.0)}),
        Setting("step 30 after the reset", {}, {0: point(step=30, phase="after", proxy=1.0)}),
        Setting("step 20", {}, {0: point(step=20, proxy=3.0)}),
    ]
    named = labels(choose([Arm("reset", [], phases)], facts()), "reset")
    assert named["last"] == "step 30 after the reset"
    assert named["ship"] == "step 20"


def test_settings_that_lost_a_seed_are_no_candidates():
    lucky = setting("step 40", {"proxy": 5.0, "gold": 5.0}, seeds=(0, 1))
    plain = plain_arm()
    choices = choose([dataclasses.replace(plain, settings=[*plain.settings, lucky])], facts())
    assert labels(choices, "plain")["ship"] == "step 30"


def test_settings_with_a_number_missing_are_not_chosen():
    broken = setting("step 40", {"proxy": float("nan"), "gold": 1.0, "facts": 0.8})
    blind = setting("step 40", {"proxy": 0.1, "gold": 1.0, "facts": float("nan")})
    plain = plain_arm()
    for other in (broken, blind):
        choices = choose([dataclasses.replace(plain, settings=[*plain.settings, other])], facts())
        assert labels(choices, "plain")["ship"] == "step 30"
    assert labels(choices, "plain")["q0.95"] == "step 20"


def test_proxy_stands_in_where_gold_is_unknown():
    without = [measure for measure in MEASURES if measure["name"] != "gold"]
    named = labels(choose([plain_arm(), gentle_arm()], facts(without)), "gentle")
    # G = 1.0 now, the gentle arm has 0.85
    assert (named["q0.8"], named["q0.95"]) == ("step 20", None)


@pytest.mark.parametrize(
    ("arms", "about", "why"),
    [
        ([gentle_arm()], facts(), "no plain arm"),
        ([Arm("plain", [], [], plain=True), gentle_arm()], facts(), "no finished runs"),
        ([plain_arm(), gentle_arm()], facts(gold=0.9), "gained no reward on validation \\(0.900 to 0.700\\)"),
        ([plain_arm(), gentle_arm()], facts(select=()), "no select ability"),
        ([plain_arm(), gentle_arm()], facts(gold=float("nan")), "reward of initial"),
        ([plain_arm(), gentle_arm()], facts(MEASURES[2:]), "no reward"),
    ],
)
def test_no_reward_to_match_is_said(arms, about, why):
    choice = choose(arms, about).arms["gentle"].named["q0.95"]
    assert choice.setting is None
    assert re.search(why, choice.how)


def test_arms_without_finished_runs_are_no_crash():
    choices = choose([plain_arm(), Arm("failed", [], [])], facts())
    assert set(labels(choices, "failed").values()) == {None}
    assert choices.arms["failed"].named["q0.95"].how == "no finished runs"


def test_abilities_near_chance_are_left_out_with_the_reason():
    # 40 items with standard deviation 0.2: a standard error of 0.03; reading at 0.30 is 0.05 above its chance of 0.25
    about = facts(reading=0.30, noise=0.2)
    assert list(left_out(about)) == ["reading"]
    assert left_out(about)["reading"].startswith("initial is 0.050 above chance (0.250) on validation; 3 standard")
    assert ITEMS == 40


def test_abilities_near_chance_on_test_are_left_out_too():
    reason = left_out(facts(noise=0.1, test={"reading": 0.2}))["reading"]
    assert reason.startswith("initial is 0.050 below chance (0.250) on test")


def test_abilities_that_were_not_measured_are_left_out():
    assert left_out(facts(sums=float("nan"))) == {"sums": "not measured at initial on validation"}


def test_certain_scores_above_chance_are_measurable():
    assert left_out(facts()) == {}
    assert isinstance(facts(), Facts)


AWKWARD = [(0.0, 0.7, 0.8), (0.1, 0.2, 0.5), (0.1, 1.1, 0.95), (0.1, 0.3, 0.8)]  # a last bit below the share


def arm_of(*numbers, name="arm"):
    """One setting a (gold, facts) pair, ten steps apart; reading stays whole."""
    made = [setting(f"step {10 * i}", {"gold": gold, "facts": facts}) for i, (gold, facts) in enumerate(numbers, 1)]
    return Arm(name, [], made)


def matched(arm, about=None, name="q0.5"):
    return choose([plain_arm(), arm], about or facts()).arms[arm.name].named[name]


def test_of_equal_taxes_the_most_reward_and_of_equal_settings_the_first():
    assert matched(arm_of((0.5, 0.7), (0.6, 0.7), (0.4, 0.7))).setting == "step 20"
    assert matched(arm_of((0.5, 0.7), (0.5, 0.7))).setting == "step 10"


@pytest.mark.parametrize(("start", "gain", "share"), AWKWARD)
def test_a_setting_exactly_at_the_reward_is_there_whatever_the_rounding(start, gain, share):
    plain = Arm("plain", [], [setting("step 10", {"proxy": 1.0, "gold": start + gain, "facts": 0.6})], plain=True)
    arm = Arm("exact", [], [setting("step 10", {"gold": start + share * gain})])
    named = choose([plain, arm], facts(gold=start)).arms["exact"].named
    assert named[f"q{share:g}"].setting == "step 10"


def test_a_setting_a_hair_below_the_reward_is_not_there():
    # of 0.7, where a half is 0.35
    found = matched(arm_of((0.349999, 0.8)))
    assert (found.setting, found.how) == (None, "never got there: at most 0.499999 of plain's gain on validation")


def test_settings_whose_reward_is_missing_are_not_there():
    assert matched(arm_of((float("nan"), 0.8), (0.5, 0.7))).setting == "step 20"
    assert matched(arm_of((float("inf"), 0.8), (0.5, 0.7))).setting == "step 20"
    assert matched(arm_of((float("nan"), 0.8))).how == "no finished runs"


def test_a_lower_reward_than_initials_is_never_matched():
    assert matched(arm_of((-1.0, 0.8))).how == "never got there: at most -1.43 of plain's gain on validation"


@settings(max_examples=5, deadline=None)
@given(*[st.lists(st.floats(0, 1), min_size=2, max_size=2)] * 2)
def test_no_choice_depends_on_report_abilities_nor_on_test(validation, test):
    def choices(reported, tested):
        def made(arm, number, other):
            points = {"proxy": 0.9, "gold": 0.68, "facts": 0.78, "sums": number}
            more = setting(
                "step 30", {**points, "facts": 0.7, "sums": other}, test={"facts": tested[0], "gold": tested[1]}
            )
            return dataclasses.replace(arm, settings=[*arm.settings, setting("step 20", points), more][-2:])

        about = facts(sums=0.5)
        return str(choose([plain_arm(), made(gentle_arm(), *reported)], about))

    assert choices(validation, test) == choices([0.5, 0.5], [0.6, 0.7])


def test_an_ability_is_select_or_report():
    with pytest.raises(ValueError, match="not both: reading"):
        facts(select=("facts", "reading"), report=("reading",))


@pytest.mark.parametrize(("now", "kept"), [(0.25, 0.0), (0.2, -0.1), (0.75, 1.0), (0.8, 1.1)])
def test_retention_is_not_cut_at_chance_nor_at_initial(now, kept):
    # (now - 0.25) / 0.5
    assert retention(now, 0.75, 0.25) == pytest.approx(kept)


def test_an_ability_of_which_all_answers_are_guesses_on_one_split_alone_is_left_out():
    """40 items with two options and an accuracy of 0.7 on validation: 0.2 above chance, at an error of 0.07."""
    measures = [{**one, "chance": 0.5 if one["name"] == "reading" else one["chance"]} for one in MEASURES]
    assert "reading" not in left_out(facts(measures, reading=0.75))
    assert left_out(facts(measures, reading=0.75, test={"reading": 0.5}))["reading"].startswith(
        "initial is 0.000 below"
    )
