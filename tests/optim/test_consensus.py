"""The consensus of two deltas against the paper's Eq. 7, written entry by entry, and its worked cases."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from untaxed.consensus import consensus

NUMBERS = st.floats(-4, 4, allow_nan=False, width=32) | st.sampled_from([0.0, 1.0, -1.0])


def equation_7(a: float, b: float) -> float:
    sign = (a > 0) - (a < 0), (b > 0) - (b < 0)
    if sign[0] == sign[1]:
        return a + b
    return a * (abs(a) >= abs(b)) + b * (abs(b) >= abs(a))


@given(a=NUMBERS, b=NUMBERS, weight=st.sampled_from([0.25, 0.5, 0.75]))
def test_sign_is_equation_7_of_the_weighted_terms(a: float, b: float, weight: float) -> None:
    terms = [torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)]
    expected = equation_7((1 - weight) * a, weight * b)
    assert consensus(terms, [1 - weight, weight], how="sign").item() == expected


def test_the_two_elections_are_two_methods() -> None:
    """A small weight on a large delta: with the weights the update wins, without them the delta does."""
    update, delta, w = torch.full((4,), 1e-6), torch.tensor([1e-3, -1e-3, 1e-7, 0.0]), 1e-7
    paper = consensus([update, delta], [1 - w, w], how="sign")
    released = consensus([update, delta], [1 - w, w], how="sign_unweighted")
    torch.testing.assert_close(paper, torch.tensor([1.0001e-6, 1e-6, 1e-6, 1e-6]), rtol=1e-5, atol=1e-16)
    torch.testing.assert_close(released, torch.tensor([1.0001e-6, -1e-10, 1e-6, 1e-6]), rtol=1e-5, atol=1e-16)


def test_an_exact_tie_is_nothing_with_weights_and_the_positive_term_without() -> None:
    terms = [torch.tensor([2.0, -2.0]), torch.tensor([-2.0, 2.0])]
    assert consensus(terms, [0.5, 0.5], how="sign").tolist() == [0.0, 0.0]
    assert consensus(terms, [0.5, 0.5], how="sign_unweighted").tolist() == [1.0, 1.0]


def test_three_terms_keep_those_that_agree_with_the_sum() -> None:
    """TIES: signs of (1, 1, -3): the sum is negative, so -3 stands alone."""
    terms = [torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([-3.0])]
    assert consensus(terms, [1.0, 1.0, 1.0], how="sign").item() == -3.0
    assert consensus(terms, [1.0, 1.0, 1.0], how="sum").item() == -1.0


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ValueError, match="one weight a term"):
        consensus([torch.ones(1)], [0.5, 0.5])
    with pytest.raises(ValueError, match="how must be"):
        consensus([torch.ones(1)], [1.0], how="vote")  # type: ignore[arg-type]
