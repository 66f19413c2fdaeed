"""Stochastic rounding: one of the two neighbours, with the mean of the sum, from far below an ulp to many ulps."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from untaxed.counter import mask_key, random_bits
from untaxed.optim import add_rounded
from untaxed.optim._rounding import added

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
N = 1 << 20


def neighbours(dtype: torch.dtype, total: Fraction) -> tuple[Fraction, Fraction]:
    """The numbers of a dtype around a sum and above its lower one, from the exponent, in exact arithmetic."""
    digits, smallest = {torch.bfloat16: (7, -126), torch.float16: (10, -14), torch.float32: (23, -126)}[dtype]
    exponent = smallest
    while Fraction(2) ** (exponent + 1) <= abs(total):
        exponent += 1
    gap = Fraction(2) ** (exponent - digits)
    lower = total // gap * gap
    return lower, lower + gap


@pytest.mark.parametrize("dtype", DTYPES)
@given(x=st.floats(-4, 4), u=st.one_of(st.floats(-4, 4), st.floats(-1e-7, 1e-7)))
@example(x=1.0, u=-1e-12)
@example(x=-1.0, u=-1e-12)
@example(x=0.5, u=-1.0)
@settings(max_examples=200, deadline=None)
def test_the_two_ends_of_the_bits_give_the_two_neighbours(dtype: torch.dtype, x: float, u: float) -> None:
    old, update = torch.tensor([x], dtype=dtype), torch.tensor([u], dtype=torch.float64)
    low, high = (add_rounded(old, update, torch.tensor([bits])) for bits in (0xFFFFFFFF, 0))
    assert low.dtype == high.dtype == dtype
    total = Fraction(old.double().item()) + Fraction(u)
    lower, upper = neighbours(dtype, total)
    share = (total - lower) / (upper - lower)
    ends = Fraction(low.double().item()), Fraction(high.double().item())
    if share == 0:
        assert ends == (lower, lower)
    elif 2**-32 < share < 1 - 2**-32:
        assert ends == (lower, upper)
    else:
        assert set(ends) <= {lower, upper}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x", [0.02, -0.02, 1.0, -1.0, 0.0, 2.0**-7, -(2.0**-7), 255.0])
@pytest.mark.parametrize("ulps", [1e-7, -1e-7, 3e-4, 0.3, -0.3, 0.5, 0.999, 1.0, 3.25, -3.25, 300.4, -300.4])
def test_the_mean_of_the_result_is_the_sum(dtype: torch.dtype, x: float, ulps: float) -> None:
    old = torch.full((N,), x, dtype=dtype)
    gap = torch.finfo(dtype).eps * max(abs(x), 1e-3)
    u = torch.full((N,), ulps * gap, dtype=torch.float64)
    new = add_rounded(old, u, random_bits(mask_key(0, "w", 1), N)).double()
    total = old.double() + u
    assert len(new.unique()) <= 2
    spread = max(gap, (new.max() - new.min()).item()) if len(new.unique()) == 2 else gap
    share = ((total - new.min()) / spread).mean().clamp(0, 1).item()
    assert abs((new - total).mean().item()) < 6 * spread * (max(share * (1 - share), 2 / N) / N) ** 0.5


def test_probabilities_are_exact_to_the_last_bit_of_the_random_word() -> None:
    """x = 1 in float32, upper gap 2^-23: an update of k 2^-55 has probability k 2^-32, far below float64's own ulp."""
    old = torch.ones(4)
    u = torch.full((4,), 3 * 2.0**-55, dtype=torch.float64)
    moved = add_rounded(old, u, torch.tensor([0, 2, 3, 4]))
    assert (moved > 1).tolist() == [True, True, False, False]
    down = add_rounded(old, -u, torch.tensor([0, 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFF0]))  # the gap below is half as wide
    assert (down < 1).tolist() == [False, True, True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_of_the_grid_stay_and_the_end_of_the_range_is_infinite(dtype: torch.dtype) -> None:
    old = torch.tensor([0.0, -0.0, 1.0, -3.5, torch.finfo(dtype).tiny], dtype=dtype)
    assert torch.equal(add_rounded(old, torch.zeros(5), torch.tensor([0, 1, 2, 0, 0xFFFFFFFF])), old)
    end = torch.tensor([torch.finfo(dtype).max], dtype=dtype)
    assert add_rounded(end, end.double(), torch.zeros(1)).isinf().all()
    assert add_rounded(end, torch.tensor([float("nan")]), torch.zeros(1)).isnan().all()


def test_parts_round_as_the_whole_does_and_nearest_is_nearest() -> None:
    old = torch.randn(10_000, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    update = torch.full((10_000,), 1e-3)
    options = {"seed": 3, "name": "w", "step": 2}
    whole = added(old, update, "stochastic", offset=0, **options)
    parts = [added(old[a:b], update[a:b], "stochastic", offset=a, **options) for a, b in ((0, 4097), (4097, 10_000))]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(added(old, update, "nearest", offset=0, **options), (old.float() + update).bfloat16())
    assert added(old[:0], update[:0], "stochastic", offset=0, **options).shape == (0,)
