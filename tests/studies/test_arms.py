"""From methods to arms, settings and runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from untaxed.errors import SpecError
from untaxed.method import Context
from untaxed.studies.arms import check_arms, plan_arms, plan_runs, run_key, variant, variant_name

RESET = {"elastic_reset": {"decay": 0.9, "reset_every": 2}}
SHARES = {"averaging": {"initial_share": {"sweep": [0.2, 0.4]}}}
DPO = Context("dpo", 4)


def test_an_arm_is_an_item_and_a_setting_a_choice_of_its_sweeps() -> None:
    arms = plan_arms(["plain", {"kl": {"beta": {"sweep": [0.3, 1.0]}}}, [RESET, SHARES]])
    assert [arm.label for arm in arms] == ["plain", "kl", "elastic_reset + averaging"]
    assert [setting.label for setting in arms[1].settings] == ["beta=0.3", "beta=1.0"]
    composed = arms[2].settings
    assert [[method.name for method in setting.training] for setting in composed] == [["elastic_reset"]] * 2
    assert [setting.after[0].settings() for setting in composed] == [{"initial_share": 0.2}, {"initial_share": 0.4}]


def test_several_sweeps_multiply() -> None:
    sweep = {"elastic_reset": {"decay": {"sweep": [0.5, 0.9]}, "reset_every": {"sweep": [2, 3]}}}
    [arm] = plan_arms([sweep])
    assert [dict(setting.values) for setting in arm.settings] == [
        {"decay": decay, "reset_every": every} for decay in (0.5, 0.9) for every in (2, 3)
    ]


def test_equal_training_parts_share_a_run() -> None:
    arms = plan_arms(["plain", "early_stopping", SHARES, RESET, [RESET, SHARES]])
    runs = plan_runs(arms, [0, 1], {"models": "m"})
    assert len(runs) == 4  # plain and elastic_reset, two seeds each
    assert sorted(len(run.variants) for run in runs.values()) == [2, 2, 2, 2]


@pytest.mark.parametrize("beta", [1, "1", "1e0", 1.0])
def test_equal_values_make_the_same_run_however_they_are_written(beta: Any) -> None:
    for value in (beta, {"sweep": [beta]}):
        arms = plan_arms([{"kl": {"beta": value}}])
        [run] = plan_runs(arms, [0], {}).values()
        assert run.training[0].settings() == {"beta": 1.0}
        assert run.key == "3d249c13898b"  # as it was before values were typed: results on disk keep their keys
    assert arms[0].settings[0].label == "beta=1.0"


def test_averaging_alone_makes_plains_runs() -> None:
    runs = plan_runs(plan_arms([SHARES]), [0], {})
    assert [run.training for run in runs.values()] == [()]


def test_labels_that_collide_get_their_settings() -> None:
    arms = plan_arms([{"kl": {"beta": 0.3}}, {"kl": {"beta": {"sweep": [1.0, 2.0]}}}, "plain"])
    assert [arm.label for arm in arms] == ["kl (beta=0.3)", "kl (beta=1.0|2.0)", "plain"]


@pytest.mark.parametrize(
    ("methods", "line"),
    [
        (["plian"], "methods.0: unknown method 'plian'; did you mean 'plain'"),
        (["plain", {"kl": {"bta": 1}}], "methods.1.kl has no setting 'bta'; did you mean 'beta'"),
        ([{"averaging": {"initial_share": 1.5}}], r"methods.0.averaging: initial_share must be in \[0, 1\]"),
        ([{"kl": {"beta": {"sweep": []}}}], r"methods.0.kl.beta: a sweep is written \{sweep: \[value, …\]\}"),
        ([{"kl": {"beta": {"sweep": [1, 2], "log": True}}}], "methods.0.kl.beta: a sweep is written"),
        ([{"kl": {"beta": {"sweep": [1, 1]}}}], "a value stands twice in the sweep"),
        ([{"kl": {"beta": {"sweep": [1, "1.0"]}}}], "a value stands twice in the sweep"),
        (
            [{"kl": {"beta": {"swep": [1]}}}],
            r"methods.0.kl.beta: should be a valid number, .*; a sweep is written \{sw",
        ),
        ([{"kl": {"beta": "strong"}}], "methods.0.kl.beta: should be a valid number.*, got 'strong'"),
        ([{"kl": {"beta": True}}], "methods.0.kl.beta must be a number, got True"),
        ([{"kl": {"beta": None}}], "methods.0.kl.beta: should be a valid number, got None"),
        ([{"kl": {"beta": float("inf")}}], "methods.0.kl.beta must be finite, got inf"),
        (
            [[SHARES, {"elastic_reset": {"decay": 0.9, "reset_every": 2.5}}]],
            "methods.0.1.elastic_reset.reset_every: should",
        ),
        (
            [{"elastic_reset": {"decay": 0.9}}],
            "methods.0.elastic_reset: reset_every is missing: give it, or reset_when",
        ),
        (["early_stopping"], "early_stopping judges plain's checkpoints; add `- plain`"),
        ([["plain", RESET]], "plain cannot be composed; make it an arm of its own"),
        ([[RESET, RESET]], "a method stands twice in one arm"),
        (["plain", "plain"], "the arm 'plain' is given 2 times"),
        ([{"kl": 3}], "expected a method's name or"),
        ([3], "expected a method's name or"),
        ([[]], "expected a method's name or"),
    ],
)
def test_what_is_wrong_is_named(methods: list[Any], line: str) -> None:
    with pytest.raises(SpecError, match=line):
        plan_arms(methods)


def test_given_checkpoints_take_only_methods_that_act_afterwards() -> None:
    nothing_trained = Context(None, None)
    check_arms(plan_arms(["plain", SHARES]), nothing_trained)
    with pytest.raises(SpecError, match="elastic_reset acts during training, and a study of given checkpoints trains"):
        check_arms(plan_arms([RESET]), nothing_trained)


@given(st.dictionaries(st.text(max_size=3), st.integers(), max_size=4), st.integers(0, 9))
def test_a_key_depends_on_content_and_not_on_order(identity: dict[str, int], seed: int) -> None:
    turned = dict(reversed(identity.items()))
    assert run_key(identity, (), seed) == run_key(turned, (), seed)
    assert run_key(identity, (), seed) != run_key(identity, (), seed + 1)
    assert run_key(identity, (), seed) != run_key({**identity, "more": 1}, (), seed)


def test_variants_are_plain_values_and_their_names_can_be_folders() -> None:
    [arm] = plan_arms([SHARES])
    after = arm.settings[0].after
    assert variant(()) is None
    assert json.loads(json.dumps(variant(after, "last"))) == {"method": "averaging", "initial_share": 0.2, "of": "last"}
    assert variant_name(after, "last") == "averaging-0.2@last"
