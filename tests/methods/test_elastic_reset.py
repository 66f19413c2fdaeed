from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from untaxed.callbacks import ElasticReset, ElasticResetState, WeightAverage, kept_share
from untaxed.weights import same, snapshot, trainable

sys.path.insert(0, str(Path(__file__).parents[1] / "reference"))
from elastic_reset import SlowElasticReset


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype)


def move(model: nn.Module, generator: torch.Generator, size: float = 0.1) -> None:
    """Stands for `optimizer.step()`."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainable(model).items()}


@pytest.mark.parametrize(("decay", "reset_every", "update_every"), [(0.9, 3, 1), (0.5, 4, 2), (0.0, 2, 1), (1.0, 5, 5)])
def test_agrees_with_the_slow_twin(decay: float, reset_every: int, update_every: int) -> None:
    model, generator = network(), torch.Generator().manual_seed(1)
    flat = nn.utils.parameters_to_vector(model.parameters()).tolist()
    slow = SlowElasticReset(flat, decay, reset_every, update_every)
    fast = ElasticResetState(model, decay=decay, reset_every=reset_every, update_every=update_every)
    for step in range(1, 14):
        move(model, generator)
        expected = slow.after_step(nn.utils.parameters_to_vector(model.parameters()).tolist())
        assert fast.step() == (step % reset_every == 0)
        ours = nn.utils.parameters_to_vector(model.parameters())
        torch.testing.assert_close(ours, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_after_a_reset_the_policy_is_the_old_average_and_the_average_is_initial() -> None:
    model, generator = network(), torch.Generator().manual_seed(1)
    initial = snapshot(model)
    reset = ElasticResetState(model, decay=0.7, reset_every=3)
    beside = WeightAverage(model, decay=0.7)  # sees the same policies and is never reset
    for step in range(1, 4):
        move(model, generator)
        beside.update()
        assert reset.step() == (step == 3)
    assert same(values(model), beside.tensors())
    assert same(reset.state_dict()["average"], initial)
    assert reset.state_dict()["steps_since_reset"] == 0
    assert reset.state_dict()["resets"] == 1


def test_the_order_is_policy_first() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    reset = ElasticResetState(model, decay=0.5, reset_every=1)
    nn.init.ones_(model.weight)
    reset.step()
    assert model.weight.item() == 0.5  # the other order would reset to the initial 0


def test_decay_1_resets_to_initial_and_decay_0_never_changes_the_policy() -> None:
    for decay in (1.0, 0.0):
        model, generator = network(), torch.Generator().manual_seed(1)
        initial = values(model)
        reset = ElasticResetState(model, decay=decay, reset_every=2)
        for _ in range(4):
            move(model, generator)
            before = values(model)
            expected = initial if reset.due() and decay == 1 else before
            reset.step()
            assert same(values(model), expected)


def test_objects_frozen_parameters_buffers_and_the_optimizer_are_left_alone() -> None:
    model = network()
    model[2].requires_grad_(False)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1)
    reset = ElasticResetState(model, decay=0.5, reset_every=2)
    objects = list(model.parameters())
    for step in range(4):
        model(torch.randn(3, 5, generator=torch.Generator().manual_seed(step))).sum().backward()
        optimizer.step()
        moments = [state["exp_avg"].clone() for state in optimizer.state.values()]
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        frozen = [parameter.clone() for parameter in model[2].parameters()]
        reset.step()
        assert all(torch.equal(a, state["exp_avg"]) for a, state in zip(moments, optimizer.state.values(), strict=True))
        assert {state["step"].item() for state in optimizer.state.values()} == {step + 1.0}
        assert same(dict(model.named_buffers()), buffers)
        assert all(torch.equal(a, b) for a, b in zip(frozen, model[2].parameters(), strict=True))
    assert all(a is b for a, b in zip(objects, model.parameters(), strict=True))
    assert set(reset.state_dict()["average"]) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_resume_is_bit_identical_from_the_middle_of_a_cycle() -> None:
    model, generator = network(), torch.Generator().manual_seed(1)
    reset = ElasticResetState(model, decay=0.9, reset_every=5)
    for _ in range(7):
        move(model, generator)
        reset.step()
    saved = {
        key: {name: tensor.clone() for name, tensor in value.items()} if isinstance(value, dict) else value
        for key, value in reset.state_dict().items()
    }
    weights, random = values(model), generator.get_state()
    for _ in range(6):
        move(model, generator)
        reset.step()

    again = network()
    again.load_state_dict({**again.state_dict(), **weights})
    resumed = ElasticResetState(again, decay=0.9, reset_every=5)  # takes the drifted weights for initial ones
    resumed.load_state_dict(saved)  # and is told better
    generator.set_state(random)
    for _ in range(6):
        move(again, generator)
        resumed.step()
    assert same(values(again), values(model))
    assert same(resumed.state_dict()["average"], reset.state_dict()["average"])


def test_a_skipped_reset_stays_due() -> None:
    reset = ElasticResetState(network(), decay=0.5, reset_every=2)
    reset.skip()
    assert reset.due()
    reset.skip()
    assert reset.due()
    assert reset.step()
    assert not reset.due()


def test_bfloat16_weights_do_not_stall_the_average() -> None:
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(model.weight)
    average = WeightAverage(model, decay=0.999)
    with torch.no_grad():
        model.weight.add_(2**-7)  # one unit in bfloat16's last place at 1
    for _ in range(5000):
        average.update()
    # 1 + 2^-7 (1 - 0.999^5000) = 1.00776...; in bfloat16 it would still be 1
    assert average.tensors()["weight"].item() == pytest.approx(1 + 2**-7 * (1 - 0.999**5000), abs=2e-5)


def test_closed_form_of_the_average() -> None:
    # after n updates with policies p_i: decay^n p_0 + (1 - decay) sum decay^(n - i) p_i
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 3.0)
    average = WeightAverage(model, decay=0.8)
    policies = [1.0, -2.0, 5.0, 0.5]
    for policy in policies:
        nn.init.constant_(model.weight, policy)
        average.update()
    expected = 0.8**4 * 3 + 0.2 * sum(0.8 ** (4 - i) * p for i, p in enumerate(policies, start=1))
    assert average.tensors()["weight"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("decay", "updates", "expected"),
    [
        (0.995, 17, 0.044),
        (0.99, 17, 0.085),
        (0.95, 17, 0.35),
        (0.995, 50, 0.118),
        (0.995, 260, 0.44),
        (0.995, 1040, 0.81),
    ],
)
def test_kept_share_of_published_settings(decay: float, updates: int, expected: float) -> None:
    assert kept_share(decay, updates) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.97, 1.0])
def test_kept_share_is_what_a_steady_drift_keeps(decay: float) -> None:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    reset = ElasticResetState(model, decay=decay, reset_every=9)
    for step in range(1, 10):
        nn.init.constant_(model.weight, float(step))
        reset.step()
    assert model.weight.item() / 9 == pytest.approx(kept_share(decay, 9), abs=1e-6)


def test_sharding_after_the_state_was_built_is_refused() -> None:
    model = network()
    reset = ElasticResetState(model, decay=0.5, reset_every=2)
    model[0] = nn.Linear(5, 2)
    with pytest.raises(ValueError, match=r"'0\.weight' has shape \(4, 5\) in the average and \(2, 5\) in the model"):
        reset.step()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.5, "reset_every": 2}, r"decay must be in \[0, 1\], got 1.5"),
        ({"decay": "0.5", "reset_every": 2}, r"decay must be a number in \[0, 1\], got '0.5'"),
        ({"decay": True, "reset_every": 2}, r"decay must be a number in \[0, 1\], got True"),
        ({"decay": 0.5, "reset_every": 0}, "reset_every must be a whole number of steps, at least 1, got 0"),
        ({"decay": 0.5, "reset_every": True}, "reset_every must be a whole number"),
        ({"decay": 0.5, "reset_every": 2.5}, "reset_every must be a whole number"),
        ({"decay": 0.5, "reset_every": 5, "update_every": 2}, "multiple of update_every, got 5 and 2"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ElasticReset(**settings)
    with pytest.raises(ValueError, match=message):
        ElasticResetState(nn.Linear(1, 1), **settings)


def test_a_model_that_does_not_train_is_refused() -> None:
    model = network().requires_grad_(False)
    for make in (ElasticResetState, WeightAverage):
        settings = {"decay": 0.5, "reset_every": 2} if make is ElasticResetState else {"decay": 0.5}
        with pytest.raises(ValueError, match=r"Sequential has no trainable parameter.*; set requires_grad"):
            make(model, **settings)


def malformed() -> list[tuple[Any, str]]:
    """States that `ElasticResetState(network(), …)` cannot have had, and what is said about them."""
    good = ElasticResetState(network(), decay=0.5, reset_every=3).state_dict()
    return [
        ({}, "'average' is missing; 'initial' is missing; 'moments' is missing; 'steps_since_reset' is missing;"),
        (None, "it is NoneType, no mapping"),
        ({**good, "resets": "1"}, "'resets' must be a whole number from 0 on, got '1'"),
        ({**good, "steps_since_reset": -1}, "'steps_since_reset' must be a whole number from 0 on, got -1"),
        ({**good, "average": None}, "'average' must be tensors by name, got None"),
        ({**good, "initial": {"0.weight": 1.0}}, "'initial' must be tensors by name"),
        ({**good, "average": {}}, "do not fit: '0.weight' is missing"),
    ]


@pytest.mark.parametrize("case", range(7))
def test_a_malformed_state_is_refused_and_nothing_of_it_taken_up(case: int) -> None:
    state, message = malformed()[case]
    model, generator = network(), torch.Generator().manual_seed(1)
    reset = ElasticResetState(model, decay=0.5, reset_every=3)
    move(model, generator)
    reset.step()
    before = {name: tensor.clone() for name, tensor in reset.state_dict()["average"].items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        reset.load_state_dict(state)
    assert same(reset.state_dict()["average"], before)
    assert reset.steps_since_reset == 1


@pytest.mark.parametrize("values", [None, {"0.weight": 1}, [torch.ones(1)]])
def test_an_average_is_assigned_tensors(values: Any) -> None:
    with pytest.raises(ValueError, match="an average is assigned tensors by name"):
        WeightAverage(network(), decay=0.5).assign(values)
    with pytest.raises(ValueError, match=r"'0\.weight' is missing from the values given"):
        WeightAverage(network(), decay=0.5).assign({})
