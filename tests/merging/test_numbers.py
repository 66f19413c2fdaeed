"""Worked numbers, ends of shares, and what each merge promises by itself."""

from __future__ import annotations

import doctest
import importlib
import math
from typing import Any

import pytest
import torch
from table_of_rules import tensors

from untaxed.merging import average, dare, extrapolate, linear, model_stock, slerp, task_arithmetic, ties, warp
from untaxed.sparsify import kept_count

MODULES = ["linear", "task_arithmetic", "extrapolation", "slerp", "warp", "model_stock", "ties", "dare"]


@pytest.mark.parametrize("module", ["untaxed.largest", *(f"untaxed.merging._{name}" for name in MODULES)])
def test_every_example_runs(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(module), extraglobs={"torch": torch})
    assert failed == 0
    assert tried


def test_linear_and_task_arithmetic() -> None:
    models = [torch.tensor([1.0, 2.0]), torch.tensor([5.0, -2.0])]
    # (1·1 + 3·5)/4 = 4; (1·2 − 3·2)/4 = −1; not normalized 16 and −4
    assert linear(models, weights=[1, 3]).tolist() == [4.0, -1.0]
    assert linear(models, weights=[1, 3], normalize=False).tolist() == [16.0, -4.0]
    # base 1: deltas (0, 1) and (4, −3); 1 + 0.5·(0 + 2·4) = 5; 1 + 0.5·(1 − 2·3) = −1.5
    assert task_arithmetic(models, torch.ones(2), weights=[1, 2], scale=0.5).tolist() == [5.0, -1.5]


def test_ties() -> None:
    base = torch.tensor([1.0, 1.0, 1.0, 1.0])
    one, two = base + torch.tensor([4.0, -3.0, 0.5, 0.1]), base + torch.tensor([-1.0, -5.0, 0.2, 3.0])
    # half is kept: (4, −3, 0, 0) and (0, −5, 0, 3); all agree: 4, mean(−3, −5) = −4, 0, 3
    assert ties([one, two], base, density=0.5).tolist() == [5.0, -3.0, 1.0, 4.0]
    # all is kept: 4 beats −1, and stands alone; (0.5 + 0.2)/2 = 0.35; (0.1 + 3)/2 = 1.55
    assert torch.allclose(ties([one, two], base, density=1.0), torch.tensor([5.0, -3.0, 1.35, 2.55]))
    # 4 and −4 are an exact tie: the base stays
    assert ties([base + 4, base - 4], base, density=1.0).tolist() == base.tolist()


def test_slerp_of_a_right_angle_keeps_the_length_and_the_line_does_not() -> None:
    ends = [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])]
    third = slerp(ends, weights=[2, 1])  # 30 of 90 degrees: 2 cos 30, 2 sin 30
    assert torch.allclose(third, torch.tensor([math.sqrt(3), 1.0]))
    assert linear(ends, weights=[2, 1]).norm() < 1.5


def test_three_arcs_one_after_the_other() -> None:
    ends = list(torch.eye(3))
    # slerp(slerp(x, y; 1/2), z; 1/3): 45 degrees between x and y, then a third of 90 towards z
    expected = torch.tensor([math.cos(math.pi / 6) / math.sqrt(2)] * 2 + [math.sin(math.pi / 6)])
    assert torch.allclose(slerp(ends), expected)


@pytest.mark.parametrize(
    ("first", "second"),
    [([1.0, 2.0], [2.0, 4.0]), ([1.0, 2.0], [-1.0, -2.0]), ([0.0, 0.0], [1.0, 3.0]), ([0.0, 0.0], [0.0, 0.0])],
    ids=["parallel", "opposite", "a zero", "zeros"],
)
def test_without_an_arc_slerp_goes_along_the_line(first: list[float], second: list[float]) -> None:
    ends = [torch.tensor(first), torch.tensor(second)]
    assert torch.allclose(slerp(ends, weights=[0.75, 0.25]), linear(ends, weights=[0.75, 0.25]))


def test_the_arc_and_the_line_meet_where_one_gives_way_to_the_other() -> None:
    first = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for angle in (0.99e-4, 1.01e-4):
        second = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        ends = [first, second]
        assert (slerp(ends, weights=[0.3, 0.7]) - linear(ends, weights=[0.3, 0.7])).abs().max() < 2e-9


def test_model_stock_at_60_degrees() -> None:
    base = torch.tensor([1.0, 1.0])
    models = [base + torch.tensor([2.0, 0.0]), base + torch.tensor([1.0, math.sqrt(3)])]
    # t = 2·0.5/(1 + 0.5) = 2/3 of the mean (1.5, 0.866)
    assert torch.allclose(model_stock(models, base), base + torch.tensor([1.0, math.sqrt(3) / 3]))


@pytest.mark.parametrize("second", [[0.0, 3.0], [-2.0, 0.5], [0.0, 0.0]], ids=["right", "obtuse", "unmoved"])
def test_model_stock_of_models_that_do_not_agree_is_the_base(second: list[float]) -> None:
    base = torch.tensor([1.0, 0.3])
    assert torch.equal(model_stock([base + torch.tensor([2.0, 0.0]), base + torch.tensor(second)], base), base)


def test_model_stock_of_one_model_twice_is_that_model() -> None:
    model, base = tensors(2, (33,))
    assert torch.equal(model_stock([model, model], base), model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_ends_are_the_parents_bit_for_bit(dtype: torch.dtype) -> None:
    first, second, base = tensors(3, (11, 5), dtype=dtype)
    pair = [first, second]
    assert torch.equal(linear(pair, weights=[1, 0]), first)
    assert torch.equal(linear(pair, weights=[0, 2]), second)
    assert torch.equal(slerp(pair, weights=[1, 0]), first)
    assert torch.equal(slerp(pair, weights=[0, 1]), second)
    assert torch.equal(slerp(pair, base, weights=[0, 1]), second)
    assert torch.equal(warp(pair, base, initial_share=1), base)
    assert torch.equal(warp(pair, base, weights=[1, 0], initial_share=0), first)
    assert torch.equal(task_arithmetic(pair, base, scale=0), base)
    assert torch.equal(task_arithmetic(pair, base, weights=[0, 1]), second)
    assert torch.equal(extrapolate(base, first, initial_share=0), first)
    for merge in (ties, dare):
        assert torch.equal(merge([first], base, density=1.0), first)
        assert torch.equal(merge(pair, base, density=[0.5, 1.0], weights=[0, 1]), second)
        assert torch.equal(merge(pair, base, density=0.5, scale=0.0), base)
        assert torch.equal(merge(pair, base, density=0.5, weights=[0, 0], normalize=False), base)


@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 0.999])
def test_of_one_model_the_kept_entries_are_its_own_and_the_others_the_bases(density: float) -> None:
    model, base = tensors(2, (1000,))
    made = ties([model], base, density=density)
    assert (made == model).sum() == kept_count(1000, density)
    assert ((made == model) | (made == base)).all()
    kept = made == model
    assert (model - base)[kept].abs().min() >= (model - base)[~kept].abs().max()
    plain = dare([model], base, density=density, rescale="none")
    assert ((plain == model) | (plain == base)).all()


def test_dare_keeps_the_mean_and_its_masks_go_by_seed_name_and_model() -> None:
    base, model = torch.zeros(1 << 18), torch.rand(1 << 18) + 1
    made = dare([model], base, density=0.2, name="a")
    assert made.mean() == pytest.approx(model.mean().item(), rel=0.02)
    assert (made != 0).double().mean() == pytest.approx(0.2, abs=0.005)
    others = [dare([model], base, density=0.2, name="b"), dare([model], base, density=0.2, name="a", seed=1)]
    others += [dare([base, model], base, density=0.2, name="a")]
    for other in others:
        both = ((other != 0) & (made != 0)).double().mean()
        assert both == pytest.approx(0.04, abs=0.003)
    l1 = dare([model], base, density=0.2, rescale="l1")
    assert l1.abs().sum() == pytest.approx(model.abs().sum().item(), rel=1e-5)


def test_half_precision_is_merged_in_float32_and_cast_once() -> None:
    models = tensors(3, (1000,), dtype=torch.bfloat16)
    exact = sum(model.double() for model in models) / 3
    half_a_unit = exact.abs() * 2**-8  # in the last of bfloat16's 8 bits
    assert ((linear(models).double() - exact).abs() <= half_a_unit + 1e-6).all()


PAIR = [torch.zeros(2), torch.ones(2)]


@pytest.mark.parametrize(
    ("merge", "settings", "message"),
    [
        (linear, {"weights": [1, -1]}, r"must not sum to 0, got 1, -1"),
        (linear, {"weights": [1, math.nan]}, "weights must be a finite number, got nan"),
        (linear, {"weights": [1, True]}, "weights must be a finite number, got True"),
        (linear, {"weights": [1]}, "weights must be one a model, got 1 for 2 models"),
        (slerp, {"weights": [1, -0.1]}, "weights of an arc must be at least 0, and one above, got 1, -0.1"),
        (slerp, {"weights": [0, 0]}, "weights of an arc must be at least 0, and one above, got 0, 0"),
        (warp, {"initial": PAIR[0], "initial_share": 1.1}, r"initial_share must be in \[0, 1\], got 1.1"),
        (task_arithmetic, {"base": PAIR[0], "scale": math.inf}, "scale must be a finite number, got inf"),
        (ties, {"base": PAIR[0], "density": 0.0}, r"density must be in \(0, 1\], got 0.0"),
        (ties, {"base": PAIR[0], "density": [0.5]}, "densities must be one a model, got 1 for 2 models"),
        (ties, {"base": PAIR[0], "density": "all"}, "densities must be"),
        (dare, {"base": PAIR[0], "density": 1.5}, r"density must be in \(0, 1\], got 1.5"),
        (dare, {"base": PAIR[0], "density": 0.5, "consensus": "vote"}, "consensus must be sum or sign, got 'vote'"),
        (dare, {"base": PAIR[0], "density": 0.5, "rescale": "l2"}, "rescale must be none, inverse or l1, got 'l2'"),
    ],
)
def test_what_is_given_wrongly_is_named(merge: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge(PAIR, **settings)


@pytest.mark.parametrize("share", [0.1, 1.0, math.nan])
def test_an_extrapolation_goes_away_from_initial(share: float) -> None:
    with pytest.raises(ValueError, match=r"initial_share (of an extrapolation must be at most 0|must be a finite)"):
        extrapolate(*PAIR, initial_share=share)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_eight_bits_are_merged_as_others(dtype: torch.dtype) -> None:
    first, second = (tensor.to(dtype) for tensor in tensors(2, (5, 3)))
    wanted = torch.lerp(second.float(), first.float(), 0.25).to(dtype)
    for made in (
        average({"w": first}, {"w": second}, initial_share=0.25)["w"],
        linear([second, first], weights=[0.75, 0.25]),
    ):
        assert made.dtype == dtype
        assert torch.allclose(made.float(), wanted.float(), rtol=0.15)
    assert average({"w": first}, {"w": first}, initial_share=0.25)["w"].float().equal(first.float())


@pytest.mark.parametrize(
    "call",
    [
        lambda model, base: linear([model], weights=[1e39], normalize=False),
        lambda model, base: linear([model, base, base], weights=[1e29, -1e29, 1e-9]),
        lambda model, base: task_arithmetic([model], base, scale=1e20, weights=[1e20]),
        lambda model, base: extrapolate(base, model, initial_share=-1e300),
        lambda model, base: ties([model, model], base, density=0.5, scale=1e39),
        lambda model, base: ties([model], base, density=0.5, weights=[1e20], scale=1e20, normalize=False),
        lambda model, base: dare([model], base, density=1e-3, weights=[1e29]),
    ],
)
def test_weights_beyond_float32_are_refused(call: Any) -> None:
    with pytest.raises(ValueError, match=r"weights must be at most 1e\+30 in magnitude, got 1e\+|got 1\.?0*e\+"):
        call(torch.ones(3), torch.zeros(3))


@pytest.mark.parametrize("weights", [(0.3, 0.3), (0.1, 0.3), (0.3, 0.3, 0.3)])
def test_changes_that_cancel_exactly_leave_the_base_at_every_place(weights: tuple[float, ...]) -> None:
    # fused and plain multiplications stand side by side in a tensor: 0.3 d - 0.3 d was a rounding error, or 0
    change = torch.arange(1, 1002) / 64
    deltas = [-change * (weights[1] / weights[0]), change] if len(weights) == 2 else [2 * change, change, -3 * change]
    found = ties(deltas, torch.zeros(1001), density=1, weights=weights)
    assert torch.equal(found, torch.zeros(1001))
