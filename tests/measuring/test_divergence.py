import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from untaxed.divergence import entropy, token_kl

NUMBERS = st.floats(-30, 30, width=32)
PAIRS = st.integers(2, 12).flatmap(
    lambda size: st.tuples(*(st.lists(NUMBERS, min_size=size, max_size=size) for _ in range(2)))
)


def test_worked_numbers():
    half, quarter = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    assert token_kl(half, quarter).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-7)
    assert token_kl(quarter, half).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), abs=1e-7)
    assert entropy(torch.zeros(4)).item() == pytest.approx(math.log(4), abs=1e-6)
    assert entropy(torch.tensor([100.0, 0.0])).item() == pytest.approx(0.0, abs=1e-30)


@given(PAIRS)
def test_agrees_with_torch_in_float64(pair):
    p, q = (torch.tensor(logits, dtype=torch.float64) for logits in pair)
    expected = torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="sum", log_target=True)
    assert token_kl(p, q).item() == pytest.approx(max(expected.item(), 0.0), abs=1e-12, rel=1e-12)


@given(PAIRS)
def test_float32_is_never_negative_and_near_float64(pair):
    p, q = (torch.tensor(logits) for logits in pair)
    value = token_kl(p, q)
    assert value.dtype == torch.float64
    assert value.item() >= 0.0
    assert value.item() == pytest.approx(token_kl(p.double(), q.double()).item(), abs=2e-5, rel=1e-5)


@given(PAIRS)
def test_equal_logits_have_no_distance_and_entropy_stays_in_range(pair):
    logits = torch.tensor(pair[0])
    assert token_kl(logits, logits.clone()).item() == 0.0
    assert 0.0 <= entropy(logits).item() <= math.log(len(logits)) + 1e-6


def test_keeps_leading_dimensions_and_ignores_a_common_shift():
    p, q = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    assert token_kl(p, q).shape == (2, 3)
    assert torch.allclose(token_kl(p + 7.0, q - 2.0), token_kl(p, q))


def test_tokens_that_cannot_occur():
    never = torch.tensor([0.0, 0.0, -math.inf])
    sometimes = torch.zeros(3)
    assert token_kl(never, sometimes).item() == pytest.approx(math.log(1.5), abs=1e-6)
    assert token_kl(sometimes, never).item() == math.inf
    assert entropy(never).item() == pytest.approx(math.log(2), abs=1e-6)


def test_half_precision_is_computed_in_float32():
    p, q = torch.randn(50).bfloat16(), torch.randn(50).bfloat16()
    assert token_kl(p, q).item() == token_kl(p.float(), q.float()).item()


def test_inputs_are_not_written_to():
    p, q = torch.randn(4), torch.randn(4)
    before = p.clone(), q.clone()
    token_kl(p, q)
    entropy(p)
    assert torch.equal(p, before[0])
    assert torch.equal(q, before[1])


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"one shape, got \(3,\) and \(1, 3\)"):
        token_kl(torch.zeros(3), torch.zeros(1, 3))
