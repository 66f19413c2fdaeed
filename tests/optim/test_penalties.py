"""Pulls to the initial weights after the step: their formulas, their ends, in any optimizer, through a resume."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build_model_dir
from torch import Tensor, nn

from untaxed.errors import SpecError, Unsupported
from untaxed.method import Method
from untaxed.methods import build
from untaxed.optim import L1, L2, MoFO, Pipeline
from untaxed.sites import Context
from untaxed.weights import same, trainable

OPTIMIZERS: list[Any] = [
    lambda named: torch.optim.AdamW(named, lr=0.1, weight_decay=0.1),
    lambda named: torch.optim.SGD(named, lr=0.1, momentum=0.9),
    lambda named: torch.optim.RMSprop(named, lr=0.1),
]


def trained(make: Any, *methods: Method, steps: int = 5, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    optimizer = make(model.named_parameters())
    if methods:
        optimizer = Pipeline(optimizer, displacement=[method.displacement_rule() for method in methods])
    _steps(model, optimizer, range(steps))
    return trainable(model)


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    dtype = next(model.parameters()).dtype
    for step in steps:
        batch = torch.randn(6, 4, generator=torch.Generator().manual_seed(step)).to(dtype)
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_strength_an_optimizer_is_itself_and_with_all_of_it_nothing_moves(
    make: Any, dtype: torch.dtype
) -> None:
    plain, initial = trained(make, dtype=dtype), trained(make, steps=0, dtype=dtype)
    assert not same(plain, initial)
    for row in (L1, L2):
        assert same(trained(make, row(strength=0.0), dtype=dtype), plain)
        assert same(trained(make, row(strength=1e9), dtype=dtype), initial)
    assert same(trained(make, L1(strength=0.0), L2(strength=0), dtype=dtype), plain)


def test_the_formulas_on_one_step() -> None:
    """lr 0.1, gradient (1, -4, 0): SGD's displacement is (-0.1, 0.4, 0); the pulls are of 0.1 · strength."""
    ends = []
    for method in (L2(strength=2.5), L1(strength=2.0), L1(strength=0.5)):
        weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        optimizer = Pipeline(torch.optim.SGD([("w", weight)], lr=0.1), displacement=method.displacement_rule())
        weight.grad = torch.tensor([1.0, -4.0, 0.0])
        optimizer.step()
        ends.append(weight.detach() - torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(ends[0], torch.tensor([-0.075, 0.3, 0.0]))  # 1 - 0.25 of it is left
    torch.testing.assert_close(ends[1], torch.tensor([0.0, 0.2, 0.0]))  # 0.2 off, and the first does not get away
    torch.testing.assert_close(ends[2], torch.tensor([-0.05, 0.35, 0.0]))
    assert ends[1][0] == 0  # initial's bits


def test_the_pull_follows_the_learning_rate() -> None:
    """Where it is 0 nothing is pulled; where it is halved so is the pull, whether it is a number or a tensor."""
    for rate in (0.0, 0.05, torch.tensor(0.05)):
        weight = nn.Parameter(torch.tensor([1.0]))
        optimizer = Pipeline(
            torch.optim.SGD([("w", weight)], lr=0.1), displacement=L2(strength=4.0).displacement_rule()
        )
        weight.grad = torch.tensor([-10.0])
        optimizer.step()  # to 1 + (1 - 0.4)
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.tensor([0.0])
        optimizer.step()
        assert weight.item() == pytest.approx(1.6 if rate == 0 else 1 + 0.6 * 0.8)


def test_l1_leaves_most_weights_at_the_initial_model() -> None:
    initial = trained(OPTIMIZERS[0], steps=0)
    pulled, plain = trained(OPTIMIZERS[0], L1(strength=0.9)), trained(OPTIMIZERS[0])
    shares = [
        torch.cat([(one[name] == initial[name]).flatten() for name in initial]).float().mean()
        for one in (pulled, plain)
    ]
    assert shares[0] > 0.3
    assert shares[1] == 0


@pytest.mark.parametrize("row", [L1, L2])
def test_resume_is_bit_identical_and_pulls_to_the_same_place(row: Any) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    rule = row(strength=0.5)
    optimizer = Pipeline(OPTIMIZERS[0](model.named_parameters()), displacement=rule.displacement_rule())
    _steps(model, optimizer, range(3))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    _steps(model, optimizer, range(3, 6))
    other = nn.Linear(4, 3)
    other.load_state_dict(saved[0])
    resumed = Pipeline(OPTIMIZERS[0](other.named_parameters()), displacement=row(strength=9.0).displacement_rule())
    resumed.load_state_dict(saved[1])  # its strength, too
    _steps(other, resumed, range(3, 6))
    assert same(trainable(model), trainable(other))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_of_a_tensor_are_the_whole(rounding: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for part in (7, 1 << 18):
        monkeypatch.setattr("untaxed.optim._sites.PART", part)
        weight = nn.Parameter(torch.linspace(-1, 1, 60).view(6, 10).to(dtype))
        rules = [L1(strength=0.1).displacement_rule(), L2(strength=3.0).displacement_rule()]
        base = torch.optim.AdamW([("w", weight), ("empty", nn.Parameter(torch.zeros(0, 3)))], lr=0.1)
        optimizer = Pipeline(base, displacement=rules, rounding=rounding)
        for step in range(3):
            weight.grad = torch.randn(6, 10, generator=torch.Generator().manual_seed(step)).to(dtype)
            optimizer.step()
        ends.append(weight.detach().clone())
    assert torch.equal(*ends)


def test_both_at_once_have_settings_of_their_own() -> None:
    weight = nn.Parameter(torch.ones(2))
    rules = [L1(strength=0.1).displacement_rule(), L2(strength=3.0).displacement_rule()]
    optimizer = Pipeline(torch.optim.SGD([("w", weight)], lr=0.1), displacement=rules)
    assert {key: optimizer.param_groups[0][key] for key in ("l1_strength", "l2_strength")} == {
        "l1_strength": 0.1,
        "l2_strength": 3.0,
    }


def test_what_cannot_work_is_refused() -> None:
    for row in (L1, L2):
        for value in (-1.0, float("nan"), float("inf"), True):
            with pytest.raises(ValueError, match="strength must be"):
                row(strength=value)
        with pytest.raises(Unsupported, match="acts during training, and given checkpoints are not trained"):
            row(strength=0.1).check(Context(None, None))
        with pytest.raises(Unsupported, match="cannot act under deepspeed"):
            row(strength=0.1).check(Context("dpo", 5, backend="deepspeed"))
    with pytest.raises(SpecError, match="method l2: the setting `strength` is required"):
        build("l2", {})


def test_in_a_trainer_they_act_beside_other_sites(tmp_path: Path) -> None:
    """MoFO's update first, then the pull: what the update left alone stays at the initial model."""
    from untaxed.checkpoints import load_model
    from untaxed.training.in_step import around

    model = load_model(build_model_dir(tmp_path / "model"))
    initial = {name: tensor.clone() for name, tensor in trainable(model).items()}
    optimizer = around(torch.optim.AdamW(model.named_parameters(), lr=1e-3), [MoFO(density=0.2), L2(strength=200.0)])
    ids = torch.tensor([[1, 5, 9, 11]])
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in trainable(model).items():
        assert (tensor != initial[name]).float().mean() <= 0.42, name
        assert (tensor - initial[name]).abs().max() < 2e-3


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_in_bfloat16_a_pull_below_half_an_ulp_needs_stochastic_rounding(rounding: Any) -> None:
    """60 pulls of 5 % leave 0.005 of 0.1; near 1 bfloat16 has steps of 0.008, and nearest rounding stays at 0.08."""
    weight = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    rule = L2(strength=0.5).displacement_rule()
    optimizer = Pipeline(torch.optim.SGD([("w", weight)], lr=0.1), displacement=rule, rounding=rounding)
    for step in range(61):
        weight.grad = torch.full_like(weight, -1.0 if step == 0 else 0.0)
        optimizer.step()
    left = (weight.detach().float() - 1).mean().item()
    assert left > 0.05 if rounding == "nearest" else abs(left) < 0.01
