"""From methods to arms, settings and runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from untaxed.errors import SpecError
from untaxed.sites import Context
from untaxed.studies.arms import check_arms, member_seed, plan_arms, plan_runs, run_key, variant, variant_name

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


def test_members_are_further_runs_with_seeds_of_their_own() -> None:
    arms = plan_arms(["plain", {"model_stock": {"members": {"sweep": [2, 3]}}}, {"warp": {"members": 2}}])
    runs = plan_runs(arms, [0, 1], {})
    main = {run.seed: run for run in runs.values() if run.member is None}
    assert set(main) == {0, 1}
    assert len(runs) == 2 * 3
    for seed, run in main.items():
        members = [runs[key] for key in run.members]
        assert [member.seed for member in members] == [member_seed(seed, 1), member_seed(seed, 2)]
        assert [member.whose for member in members] == [f"seed {seed}, member 1", f"seed {seed}, member 2"]
        assert [(member.variants, member.training) for member in members] == [((), run.training)] * 2
        assert [len(run.made_of(after)) for after in run.variants] == [2, 3, 2]
        assert len(run.wanted(["last", "all"], merges=True)) == 3
        assert run.wanted(["last"], merges=False) == []


def test_a_members_seed_stays_what_it_is() -> None:
    """Results on disk keep their keys."""
    assert (member_seed(0, 1), member_seed(0, 2), member_seed(1, 1)) == (637006196, 1123430248, 1993340291)
    many = {member_seed(seed, number) for seed in range(50) for number in range(1, 5)}
    assert len(many) == 200
    assert max(many) < 2**31


def test_a_seed_of_the_spec_that_is_a_members_is_one_run() -> None:
    arms = plan_arms(["plain", {"model_stock": {"members": 2}}])
    runs = plan_runs(arms, [0, member_seed(0, 1)], {})
    [own] = [run for run in runs.values() if run.seed == member_seed(0, 1)]
    assert (own.member, len(own.variants), len(runs)) == (None, 1, 3)


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
        ([{"model_stock": {"members": 1}}], "methods.0.model_stock: members must be at least 2, got 1"),
        ([{"warp": {"members": {"sweep": [2, 0]}}}], "methods.0.warp: members must be at least 2, got 0"),
        (
            [[{"model_stock": {"members": 2}}, {"warp": {"members": 2}}]],
            "methods.0: model_stock and warp each make one model of all members; give each an arm",
        ),
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
    with pytest.raises(SpecError, match="model_stock merges 3 trainings, and given checkpoints belong to one; merge"):
        check_arms(plan_arms([{"model_stock": {"members": 3}}]), nothing_trained)


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


def test_a_search_before_a_merge_of_several_trainings_is_refused() -> None:
    search, merge = {"hma_search": {"evaluations": 9}}, {"model_stock": {"members": 3}}
    check_arms(plan_arms([[merge, search]]), DPO)
    with pytest.raises(SpecError, match="hma_search stands before model_stock, so it would search once for every"):
        check_arms(plan_arms([[search, merge]]), DPO)
