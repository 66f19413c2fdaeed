"""The rows that act inside a step: what they set, what they need, where they refuse."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from untaxed.errors import SpecError, Unsupported
from untaxed.method import Method
from untaxed.optim import (
    ChildTuning,
    Merging,
    MoFO,
    OnDARE,
    OnlineMerging,
    OnTIES,
    Pipeline,
    UpdateDropout,
)
from untaxed.sites import Context

ROWS: list[Method] = [
    OnlineMerging(density=0.3, merge_weight=0.1, sparsify="magnitude", pull="anchor", anchor_at=0.5, merge_every=2),
    OnDARE(density=0.05, merge_weight=1e-5),
    OnDARE(density=0.5, merge_weight=1e-7, rescale="inverse", delta_mask="once", clamp=1.0),
    OnTIES(density=0.1, merge_weight=1e-5, consensus="sign_unweighted"),
    MoFO(density=0.1),
    UpdateDropout(density=0.1, rescale="inverse"),
    ChildTuning(density=0.3),
]
MERGING = [row for row in ROWS if "update" in row.acts]
TRAINING = Context(algorithm="dpo", max_steps=100, given=frozenset({"pretrained"}))
DELTA = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}


def label(row: Method) -> str:
    return f"{row.name}-{'-'.join(map(str, row.settings().values()))}"


@pytest.mark.parametrize("row", ROWS, ids=label)
def test_a_row_says_what_it_is_and_its_settings_build_it_again(row: Method) -> None:
    assert row.title
    assert row.source
    assert row.summary[-1] != "."
    assert row.trains
    assert type(row).from_settings(row.settings()) == row
    assert "delta" not in row.settings()
    assert hash(row) == hash(dataclasses.replace(row))
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.name = "other"  # type: ignore[misc]


def test_rows_are_settings_of_one_rule() -> None:
    assert [row.merging for row in MERGING] == [
        Merging(0.3, 0.1, 2, sparsify="magnitude", pull="anchor", anchor_at=0.5),
        Merging(0.05, 1e-5),
        Merging(0.5, 1e-7, rescale="inverse", delta_mask="once", clamp=1.0),
        Merging(0.1, 1e-5, sparsify="magnitude", consensus="sign_unweighted"),
        Merging(0.1, sparsify="momentum"),
        Merging(0.1, rescale="inverse"),
    ]
    every = {field.name for field in dataclasses.fields(OnlineMerging)} - {"delta", "direction"}
    assert every == {field.name for field in dataclasses.fields(Merging)}


def test_settings_of_a_spec_are_read_in_their_types_and_refused_by_name() -> None:
    row = OnDARE.from_settings({"density": 1, "merge_weight": 0, "clamp": 1})
    assert (row.density, row.merge_weight, row.clamp) == (1.0, 0.0, 1.0)
    refused: list[tuple[type[Method], dict[str, Any], str]] = [
        (OnDARE, {"density": 0.5}, "the setting `merge_weight` is required"),
        (OnDARE, {"density": 1.5, "merge_weight": 0.1}, r"density must be in \(0, 1\], got 1.5"),
        (OnDARE, {"density": 0.5, "merge_weight": 2}, r"merge_weight must be in \[0, 1\], got 2"),
        (OnDARE, {"density": 0.5, "merge_weight": 0.1, "sparsify": "magnitude"}, "no setting 'sparsify'"),
        (OnDARE, {"density": 0.5, "merge_weight": 0.1, "delta": "x"}, "'delta'; it is computed from models.initial"),
        (OnTIES, {"density": 0.5, "merge_weight": 0.1, "consensus": "vote"}, "vote"),
        (OnlineMerging, {"density": 0.5, "merge_weight": 0.1, "direction": "up"}, "up"),
        (MoFO, {"density": 0.5, "merge_weight": 0.1}, "no setting 'merge_weight'"),
        (ChildTuning, {"density": 0}, r"density must be in \(0, 1\], got 0"),
    ]
    for kind, settings, message in refused:
        with pytest.raises(SpecError, match=message):
            kind.from_settings(settings)
    with pytest.raises(ValueError, match="direction must be one of delta, random, got 'up'"):
        OnDARE(density=1.0, merge_weight=0.1, direction="up")


def test_the_pretrained_model_is_needed_only_where_a_delta_is() -> None:
    assert OnDARE(density=0.1, merge_weight=0.1).needed == {"pretrained"}
    assert OnDARE(density=0.1, merge_weight=0.0).needed == set()
    assert OnDARE(density=0.1, merge_weight=0.1, delta=DELTA).needed == set()
    assert OnlineMerging(density=0.1, merge_weight=0.1, pull="anchor").needed == set()
    assert OnlineMerging(density=0.1, merge_weight=0.0, pull="unrelaxed").needed == {"pretrained"}
    assert MoFO(density=0.1).needed == ChildTuning(density=0.1).needed == set()


def test_a_study_asks_for_pretrained_only_where_a_delta_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    from untaxed import methods
    from untaxed.studies.arms import check_arms, plan_arms

    monkeypatch.setitem(methods.METHODS, "ondare", OnDARE)
    without = Context(algorithm="dpo", max_steps=10)
    check_arms(plan_arms([{"ondare": {"density": 0.1, "merge_weight": 0.0}}]), without)
    with pytest.raises(SpecError, match=r"ondare needs models\.pretrained, which is not given"):
        check_arms(plan_arms([{"ondare": {"density": 0.1, "merge_weight": {"sweep": [0.0, 0.1]}}}]), without)


@pytest.mark.parametrize("row", ROWS, ids=label)
def test_where_no_step_can_be_reached_every_row_refuses(row: Method) -> None:
    row.check(TRAINING)
    with pytest.raises(Unsupported, match="given checkpoints are not trained"):
        row.check(Context(algorithm=None, max_steps=None))
    for backend in ("deepspeed", "fsdp1", "sharded_at_load"):
        with pytest.raises(Unsupported, match=f"cannot act under {backend}: .*use FSDP2"):
            row.check(dataclasses.replace(TRAINING, backend=backend))


def test_adapters_need_a_delta_of_adapters() -> None:
    lora = dataclasses.replace(TRAINING, lora=True)
    for row in (OnDARE(density=0.1, merge_weight=0.1), OnDARE(density=0.1, merge_weight=0.1, delta=DELTA)):
        with pytest.raises(
            Unsupported, match=r"give the delta between two adapters on one base .* or merge after training"
        ):
            row.check(lora)
    for row in (
        OnDARE(density=0.1, merge_weight=0.1, delta={"base_model.model.q.lora_A.default.weight": torch.ones(1)}),
        OnDARE(density=0.1, merge_weight=0.0),
        MoFO(density=0.1),
        ChildTuning(density=0.1),
    ):
        row.check(lora)


def test_a_merge_that_never_comes_and_a_delta_that_is_not_there_are_refused() -> None:
    with pytest.raises(Unsupported, match="never merge: merge_every is 101, training has 100 steps"):
        OnDARE(density=0.1, merge_weight=0.1, merge_every=101).check(TRAINING)
    OnDARE(density=0.1, merge_weight=0.1, merge_every=100).check(TRAINING)
    alone = Context(algorithm="sft", max_steps=None)
    with pytest.raises(Unsupported, match=r"needs the SFT delta: pass delta=sft_delta\(initial, pretrained\)"):
        OnDARE(density=0.1, merge_weight=0.1).check(alone)
    OnDARE(density=0.1, merge_weight=0.1, delta=DELTA).check(alone)


@pytest.mark.parametrize("row", ROWS, ids=label)
def test_rules_step_with_the_rows_settings_and_other_sites_are_refused(row: Method) -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    start = module.weight.detach().clone()
    if "gradient" in row.acts:
        sites = {"gradient": row.gradient_rule()}
        with pytest.raises(NotImplementedError, match="does not act on the update"):
            row.update_rule()
    else:
        sites = {"update": row.update_rule(DELTA)}
        with pytest.raises(NotImplementedError, match="does not act on the gradient"):
            row.gradient_rule()
    with pytest.raises(NotImplementedError, match="does not act on the displacement"):
        row.displacement_rule()
    optimizer = Pipeline(torch.optim.AdamW(module.named_parameters(), lr=0.1), **sites)
    for _ in range(4):
        module(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert not torch.equal(module.weight, start)
    [group] = optimizer.param_groups
    assert group["gradient_density" if "gradient" in row.acts else "density"] == row.settings()["density"]


def test_a_rows_own_delta_and_direction_reach_its_rule() -> None:
    row = OnDARE(density=1.0, merge_weight=0.5, delta={"weight": torch.ones(50, 40)}, direction="random")
    rule = row.update_rule()
    assert rule.delta.dense("weight").norm() == pytest.approx(2000**0.5, rel=1e-5)
    assert rule.delta.dense("weight").std() > 0.9
