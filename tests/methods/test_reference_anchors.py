"""The laws of methods that move the reference, and of BEMA: closed forms, what stays, resume."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from untaxed import methods
from untaxed.callbacks import BEMA, BEMAState, SyncReference, SyncReferenceState, WARPAnchor
from untaxed.callbacks._bema import decaying
from untaxed.errors import Unsupported
from untaxed.sites import ALONE, Context, Host
from untaxed.weights import same, trainable


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype)


def move(model: nn.Module, generator: torch.Generator) -> None:
    """Stands for `optimizer.step()`."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainable(model).items()}


def doubles(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in trainable(model).items()}


def close(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name, tensor in second.items():
        torch.testing.assert_close(first[name].double(), tensor, rtol=1e-6, atol=1e-6)


def saved_copy(state: dict[str, Any]) -> dict[str, Any]:
    return {
        key: {name: tensor.clone() for name, tensor in value.items()} if isinstance(value, dict) else value
        for key, value in state.items()
    }


@pytest.mark.parametrize(("share", "sync_every"), [(0.6, 3), (0.01, 1), (1.0, 2), (0.0, 2)])
def test_the_reference_has_its_closed_form(share: float, sync_every: int) -> None:
    # after syncs with policies p_1 … p_k: (1 - s)^k r_0 + s sum (1 - s)^(k - i) p_i
    policy, reference, generator = network(), network(seed=1), torch.Generator().manual_seed(1)
    sync = SyncReferenceState(policy, reference, share=share, sync_every=sync_every)
    start, seen = doubles(reference), []
    for step in range(1, 13):
        move(policy, generator)
        assert sync.due() == (step % sync_every == 0)
        assert sync.step() is False
        if step % sync_every == 0:
            seen.append(doubles(policy))
    assert sync.syncs == len(seen)
    for name, tensor in trainable(reference).items():
        expected = (1 - share) ** len(seen) * start[name]
        for i, each in enumerate(reversed(seen)):
            expected = expected + share * (1 - share) ** i * each[name]
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_share_1_copies_the_bits_and_share_0_changes_none(dtype: torch.dtype) -> None:
    policy, reference = network(dtype), network(dtype, seed=1)
    before = values(reference)
    SyncReferenceState(policy, reference, share=0.0, sync_every=1).step()
    assert same(values(reference), before)
    SyncReferenceState(policy, reference, share=1.0, sync_every=1).step()
    assert same(values(reference), values(policy))


def test_a_bfloat16_reference_follows_small_moves() -> None:
    # one unit in the last place at 1; a hundredth of it is lost in bfloat16 arithmetic, and here adds up
    policy, reference = (nn.Linear(1, 1, bias=False).to(torch.bfloat16) for _ in range(2))
    nn.init.constant_(policy.weight, 1 + 2**-7)
    nn.init.ones_(reference.weight)
    anchor = SyncReferenceState(policy, reference, share=0.01, sync_every=1)
    for _ in range(5000):
        anchor.step()
    assert reference.weight.item() == 1 + 2**-7
    stalled = torch.ones(1, dtype=torch.bfloat16)
    for _ in range(5000):
        stalled.mul_(0.99).add_(policy.weight.detach().flatten(), alpha=0.01)
    assert stalled.item() != 1 + 2**-7


def test_narrow_references_of_wide_policies_and_the_other_way_round() -> None:
    for mine, theirs in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        policy, reference, generator = network(mine), network(theirs, seed=1), torch.Generator().manual_seed(1)
        expected = doubles(reference)
        sync = SyncReferenceState(policy, reference, share=0.3, sync_every=1)
        for _ in range(6):
            move(policy, generator)
            sync.step()
            expected = {name: 0.7 * expected[name] + 0.3 * tensor for name, tensor in doubles(policy).items()}
        close(sync.state_dict()["reference"], expected)
        rounded = {name: tensor.to(theirs) for name, tensor in sync.state_dict()["reference"].items()}
        assert same(values(reference), rounded)


def states(policy: nn.Module, reference: nn.Module) -> list[Any]:
    return [
        SyncReferenceState(policy, reference, share=0.6, sync_every=2),
        SyncReferenceState(policy, reference, share=0.01, sync_every=1),
        BEMAState(policy, reference, update_every=2, lag=1),
        BEMAState(policy, update_every=2, lag=1),
    ]


@pytest.mark.parametrize("case", range(4))
def test_policy_optimizer_frozen_parameters_and_buffers_are_left_alone(case: int) -> None:
    policy, reference = network(), network(seed=1)
    policy[2].requires_grad_(False)
    optimizer = torch.optim.AdamW((p for p in policy.parameters() if p.requires_grad), lr=0.1)
    state = states(policy, reference)[case]
    objects = [*policy.parameters(), *reference.parameters()]
    frozen = copy.deepcopy(reference[2].state_dict())
    buffers = copy.deepcopy(dict(reference.named_buffers()))
    for step in range(4):
        policy(torch.randn(3, 5, generator=torch.Generator().manual_seed(step))).sum().backward()
        optimizer.step()
        whole, inside = copy.deepcopy(policy.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
        state.step()
        assert same(policy.state_dict(), whole)
        for index, each in optimizer.state_dict()["state"].items():
            assert same(each, inside[index])
    assert same(reference[2].state_dict(), frozen)
    assert same(dict(reference.named_buffers()), buffers)
    assert all(a is b for a, b in zip(objects, [*policy.parameters(), *reference.parameters()], strict=True))
    moved = not same(values(reference[0]), values(network(seed=1)[0]))
    assert moved == (case < 3)


class Tied(nn.Module):
    """Input and output share one matrix, or have each their own."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def test_tied_tensors_move_once() -> None:
    policy, reference = Tied(), Tied()
    nn.init.ones_(policy.embed.weight)
    nn.init.zeros_(reference.embed.weight)
    SyncReferenceState(policy, reference, share=0.25, sync_every=1).step()
    assert reference.head.weight is reference.embed.weight
    assert torch.equal(reference.head.weight, torch.full((3, 3), 0.25))


def test_a_reference_that_does_not_fit_is_refused_at_once() -> None:
    for other, message in [
        (
            nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)),
            "no tensor that lies as the policy's '2.w",
        ),
        (nn.Sequential(nn.Linear(5, 4)), r"no tensor that lies as the policy's '1\.weight' does"),
    ]:
        with pytest.raises(Unsupported, match=message):
            SyncReferenceState(network(), other)
        with pytest.raises(Unsupported, match=message):
            BEMAState(network(), other)
    with pytest.raises(Unsupported, match=r"'head\.weight' is tied in the policy and not in the reference"):
        SyncReferenceState(Tied(), Tied(tied=False))
    with pytest.raises(Unsupported, match=r"no tensor that lies as the policy's 'head\.weight' does"):
        SyncReferenceState(Tied(tied=False), Tied())
    policy, given = network(), network()
    state = SyncReferenceState(policy, lambda: trainable(given), sync_every=1)
    policy[2].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"'2\.weight' is missing from the policy"):
        state.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stop", range(7))
@pytest.mark.parametrize(
    "make",
    [
        lambda policy, reference: SyncReferenceState(policy, reference, share=0.6, sync_every=3),
        lambda policy, reference: SyncReferenceState(policy, reference, share=1.0, sync_every=2),
        lambda policy, reference: BEMAState(policy, reference, update_every=3, lag=1),
        lambda policy, reference: BEMAState(policy, update_every=2, lag=0, start_after=2),
    ],
)
def test_resume_is_bit_identical_from_every_point(
    make: Callable[[nn.Module, nn.Module], Any], stop: int, dtype: torch.dtype
) -> None:
    policy, reference, generator = network(dtype), network(dtype, seed=1), torch.Generator().manual_seed(1)
    initial = copy.deepcopy(reference.state_dict())
    state = make(policy, reference)

    def go(policy: nn.Module, state: Any, steps: range) -> None:
        for step in steps:
            move(policy, generator)
            state.skip() if step % 4 == 2 else state.step()  # some are held back

    go(policy, state, range(stop))
    saved, weights, random = saved_copy(state.state_dict()), copy.deepcopy(policy.state_dict()), generator.get_state()
    go(policy, state, range(stop, 10))

    again, afresh = network(dtype), network(dtype, seed=1)
    again.load_state_dict(weights)
    afresh.load_state_dict(initial)  # a trainer loads its reference from the initial model
    resumed = make(again, afresh)
    resumed.load_state_dict(saved)
    generator.set_state(random)
    go(again, resumed, range(stop, 10))
    assert same(values(afresh), values(reference))
    for key, value in state.state_dict().items():
        other = resumed.state_dict()[key]
        assert same(value, other) if isinstance(value, dict) else value == other
    if isinstance(state, BEMAState):
        assert same(state.variant(), resumed.variant())


def test_what_is_held_back_comes_at_the_next_free_step_and_starts_a_cycle() -> None:
    policy, reference, generator = network(), network(seed=1), torch.Generator().manual_seed(1)
    sync = SyncReferenceState(policy, reference, share=1.0, sync_every=2)
    before = values(reference)
    for _ in range(3):
        move(policy, generator)
        sync.skip()
    assert same(values(reference), before)
    assert sync.due()
    sync.step()
    assert same(values(reference), values(policy))
    assert not sync.due()

    bema = BEMAState(policy, reference, update_every=2, lag=0)
    bema.step()
    move(policy, generator)
    bema.skip()  # the average is updated, the reference is not written
    move(policy, generator)
    assert same(values(reference), before := values(reference))
    assert bema.due()
    bema.step()
    assert same(values(reference), bema.variant())
    assert not same(values(reference), before)


@pytest.mark.parametrize("schedule", ["authors", "trl"])
@pytest.mark.parametrize(("every", "after"), [(1, 0), (3, 0), (2, 3)])
def test_bema_has_its_closed_form(schedule: Any, every: int, after: int) -> None:
    policy, generator = network(), torch.Generator().manual_seed(1)
    bema = BEMAState(policy, update_every=every, lag=4, start_after=after, floor=0.3, schedule=schedule)
    average = initial = doubles(policy)
    for step in range(1, 13):
        move(policy, generator)
        bema.step()
        now = doubles(policy)
        if step == after:
            average = initial = now
        base = 4.0 + step if schedule == "trl" else 1.0 + max(0, step - 4)
        weight, share = max(base**-0.5, 0.3), base**-0.2
        updated = {name: (1 - weight) * average[name] + weight * now[name] for name in now}
        if step <= after:
            expected = now
        else:  # between updates the variant is what an update now would give
            expected = {name: updated[name] + share * (now[name] - initial[name]) for name in now}
            average = updated if (step - after) % every == 0 else average
        close(bema.variant(), expected)
        close(bema.state_dict()["average"], average)


def test_bema_agrees_with_trls_callback_at_its_updates() -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from trl import BEMACallback

    class Configured(nn.Linear):
        config = None

        def __init__(self, config: Any = None) -> None:
            super().__init__(3, 2)

    policy, generator = Configured(), torch.Generator().manual_seed(1)
    theirs = BEMACallback(update_freq=2, lag=3)
    called = (TrainingArguments("unused", report_to=[]), TrainerState(), TrainerControl())
    theirs.on_train_begin(*called, model=policy)
    ours = BEMAState(policy, update_every=2, lag=3, floor=0.0, schedule="trl")
    theirs.on_step_end(*called, model=policy)  # step 0
    for step in range(1, 9):
        move(policy, generator)
        ours.step()
        called[1].global_step = step
        theirs.on_step_end(*called, model=policy)
        if step % 2 == 0:
            close(ours.variant(), doubles(theirs.running_model))


@pytest.mark.parametrize("reference", [None, "model", 3])
def test_what_is_no_reference_is_refused(reference: Any) -> None:
    with pytest.raises(ValueError, match="the reference must be a model, or a function that gives its tensors"):
        SyncReferenceState(network(), reference)


def test_a_reference_that_is_the_policy_is_refused() -> None:
    policy = network()
    for make in (SyncReferenceState, BEMAState):
        with pytest.raises(Unsupported, match=r"the reference is the policy itself \('0\.weight'\); give a copy"):
            make(policy, policy)


def test_bemas_variant_has_the_parameters_names_and_dtypes() -> None:
    policy = network(torch.bfloat16)
    policy[2].requires_grad_(False)
    variant = BEMAState(policy).variant()
    assert same(variant, values(policy))
    variant["0.weight"].zero_()
    assert policy[0].weight.any()


def test_bemas_variant_is_a_copy_from_the_first_step_on() -> None:
    policy, generator = network(), torch.Generator().manual_seed(1)
    bema = BEMAState(policy, update_every=2, start_after=3)
    move(policy, generator)
    bema.step()
    then, variant = values(policy), bema.variant()
    assert same(variant, then)
    move(policy, generator)
    assert same(variant, then)


def test_bema_follows_in_bfloat16() -> None:
    policy = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(policy.weight)
    bema = BEMAState(policy, update_every=1, floor=1e-3, average_power=8.0, lag=0, correction_power=8.0)
    nn.init.constant_(policy.weight, 1 + 2**-7)
    for _ in range(5000):
        bema.step()
    assert bema.state_dict()["average"]["weight"].item() == pytest.approx(1 + 2**-7 * (1 - 0.999**5000), abs=2e-5)


def test_the_authors_schedule() -> None:
    # gamma (1 + max(0, t - rho))^-kappa: flat for rho steps, then a root
    assert [decaying(t, 0.5) for t in (0, 10, 13, 410)] == [1.0, 1.0, 0.5, pytest.approx(401**-0.5)]
    assert decaying(13, 0.5, multiplier=0.5) == 0.25
    assert decaying(6, 0.5, schedule="trl") == 0.25


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        (SyncReference, {"share": 1.5}, r"share must be in \[0, 1\], got 1.5"),
        (SyncReference, {"sync_every": 0}, "sync_every must be a whole number of steps, at least 1, got 0"),
        (SyncReference, {"sync_every": True}, "sync_every must be a whole number of steps"),
        (WARPAnchor, {"mu": -0.1}, r"mu must be in \[0, 1\], got -0.1"),
        (WARPAnchor, {"mu": "0.1"}, r"mu must be a number in \[0, 1\], got '0.1'"),
        (BEMA, {"update_every": 1.0}, "update_every must be a whole number of steps, at least 1, got 1.0"),
        (BEMA, {"lag": -1}, "lag must be a whole number of steps from 0 on, got -1"),
        (BEMA, {"average_power": -0.5}, "average_power must be a finite number from 0 on, got -0.5"),
        (BEMA, {"correction_power": float("nan")}, "correction_power must be a finite number from 0 on, got nan"),
        (BEMA, {"multiplier": 1.5}, "multiplier must be a finite number above 0, at most 1, got 1.5"),
        (BEMA, {"multiplier": 0, "schedule": "trl"}, "multiplier must be a finite number above 0, got 0"),
        (BEMA, {"floor": 2}, r"floor must be a finite number in \[0, 1\], got 2"),
        (BEMA, {"lag": 0, "schedule": "trl"}, "lag must be at least 1 in TRL's schedule, got 0"),
        (BEMA, {"into": "policy"}, "into must be variant or reference, got 'policy'"),
        (BEMA, {"schedule": "paper"}, "schedule must be authors or trl, got 'paper'"),
    ],
)
def test_settings_out_of_range_are_refused(row: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        row(**settings)
    states = {SyncReference: lambda: SyncReferenceState(network(), network(), **settings)}
    if "into" not in settings:
        states[BEMA] = lambda: BEMAState(network(), **settings)
    if row in states:
        with pytest.raises(ValueError, match=message):
            states[row]()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            SyncReference(sync_every=10),
            "sync_reference would never change the reference: sync_every is 10, training has",
        ),
        (BEMA(), r"bema would never update its average: start_after \+ update_every is 400, training has 10 steps"),
        (BEMA(update_every=9, start_after=2), "would never update its average: .* is 11"),
        (BEMA(update_every=10, into="reference"), r"bema would never change the reference: start_after \+ .* is 10"),
    ],
)
def test_what_would_do_nothing_is_refused(method: Any, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        method.check(Context("dpo", 10))
    method.check(Context("dpo", 1000))


def test_the_last_update_of_a_variant_counts() -> None:
    BEMA(update_every=10).check(Context("dpo", 10))
    SyncReference(sync_every=9).check(Context("dpo", 10))
    WARPAnchor().check(Context("dpo", 10))


@pytest.mark.parametrize("name", ["sync_reference", "warp_anchor"])
def test_a_loop_that_shows_no_reference_is_told(name: str) -> None:
    with pytest.raises(
        Unsupported, match=f"{name} moves the reference, and this loop shows none; give the state class"
    ):
        methods.build(name).between(network(), ALONE)
    with pytest.raises(Unsupported, match="bema moves the reference"):
        BEMA(into="reference").between(network(), ALONE)
    BEMA().between(network(), ALONE)
    reference = network()
    live = methods.build(name).between(network(), Host(reference=lambda: trainable(reference)))
    assert live.state_dict()["reference"].keys() == trainable(reference).keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "it is NoneType, no mapping"),
        ({"syncs": -1}, "'syncs' must be a whole number from 0 on, got -1"),
        ({"reference": None}, "'reference' must be tensors by name, got None"),
        ({"reference": {}}, "the saved state and the reference do not fit: '0.weight' is missing"),
    ],
)
def test_a_malformed_state_is_refused_and_nothing_of_it_taken_up(change: dict | None, message: str) -> None:
    policy, reference = network(), network(seed=1)
    sync = SyncReferenceState(policy, reference, sync_every=2)
    sync.step()
    before = values(reference)
    with pytest.raises(ValueError, match=re.escape(message)):
        sync.load_state_dict(change and {**sync.state_dict(), **change})  # type: ignore[arg-type]
    assert same(values(reference), before)
    assert sync.steps_since_sync == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"waits": 2}, "'waits' must be 0 or 1, got 2"),
        ({"initial": {}}, "the saved state and the model do not fit: '0.weight' is missing"),
        ({"reference": {}}, "the saved state and the reference do not fit"),
    ],
)
def test_a_malformed_state_of_bema_is_refused(change: dict, message: str) -> None:
    policy, reference = network(), network(seed=1)
    bema = BEMAState(policy, reference, update_every=2)
    state = {**saved_copy(bema.state_dict()), **change}
    move(policy, torch.Generator().manual_seed(1))
    bema.step()
    before = saved_copy(bema.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        bema.load_state_dict(state)
    assert same(bema.state_dict()["average"], before["average"])
    assert bema.steps == 1


def test_bema_needs_something_that_trains() -> None:
    with pytest.raises(ValueError, match="Sequential has no trainable parameter to follow; set requires_grad"):
        BEMAState(network().requires_grad_(False))
