from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from untaxed.merging import Averaging, average


def test_worked_numbers() -> None:
    # 0.25 * 0 + 0.75 * 1 = 0.75;  0.25 * 8 + 0.75 * -4 = -1
    merged = average({"w": torch.tensor([0.0, 8.0])}, {"w": torch.tensor([1.0, -4.0])}, initial_share=0.25)
    assert merged["w"].tolist() == [0.75, -1.0]


def test_half_precision_is_averaged_in_float32_and_cast_once() -> None:
    initial, aligned = (torch.randn(1000).to(torch.bfloat16) for _ in range(2))
    merged = average({"w": initial}, {"w": aligned}, initial_share=0.3)["w"]
    exact = 0.3 * initial.double() + 0.7 * aligned.double()
    spacing = exact.abs() * 2**-8  # half a unit in the last of bfloat16's 8 bits
    assert ((merged.double() - exact).abs() <= spacing + 1e-6).all()


def test_float64_stays_float64() -> None:
    tiny = torch.tensor([1.0 + 2**-40], dtype=torch.float64)
    merged = average({"w": torch.ones(1, dtype=torch.float64)}, {"w": tiny}, initial_share=0.5)["w"]
    assert merged.item() == 1.0 + 2**-41


@pytest.mark.parametrize(("share", "expected"), [(0.2, 2), (0.5, 2), (0.6, 1), (1.0, 1)])
def test_integers_come_from_the_model_with_the_larger_share(share: float, expected: int) -> None:
    merged = average({"n": torch.tensor(1)}, {"n": torch.tensor(2)}, initial_share=share)["n"]
    assert merged.item() == expected
    assert merged.dtype == torch.int64


@given(st.floats(0, 1), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_any_share_of_a_model_with_itself_is_that_model(share: float, seed: int) -> None:
    weights = {"w": torch.randn(17, generator=torch.Generator().manual_seed(seed))}
    assert torch.equal(average(weights, weights, initial_share=share)["w"], weights["w"])


@pytest.mark.parametrize("share", [-1, -0.1, 1.1, math.nan, math.inf, -math.inf])
def test_a_share_out_of_range_is_refused_and_the_other_method_named(share: float) -> None:
    for make in (lambda: average({}, {}, initial_share=share), lambda: Averaging(initial_share=share)):
        with pytest.raises(
            ValueError, match=rf"initial_share must be in \[0, 1\], got {share}; .* extrapolation .*ExPO"
        ):
            make()


@pytest.mark.parametrize("share", [True, "0.2", None, [0.2]])
def test_what_is_no_number_is_no_share(share: Any) -> None:
    for make in (lambda: average({}, {}, initial_share=share), lambda: Averaging(initial_share=share)):
        with pytest.raises(ValueError, match=r"initial_share must be a number in \[0, 1\], got"):
            make()
