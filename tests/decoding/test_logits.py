"""Laws of logits between those of two models."""

from __future__ import annotations

import pytest
import torch

from untaxed.decoding import LogitMixture, mix_logits


def logits(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(3, 7, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_ends_are_the_parents_and_equal_parents_stay(dtype: torch.dtype) -> None:
    one, two = logits(1, dtype), logits(2, dtype)
    assert torch.equal(mix_logits(one, two, initial_share=0), two)
    assert torch.equal(mix_logits(one, two, initial_share=1), one)
    assert torch.equal(mix_logits(one, one, initial_share=0.3), one.to(mix_logits(one, two, initial_share=0.3).dtype))


def test_probabilities_are_the_geometric_mean() -> None:
    one, two = logits(1).double(), logits(2).double()
    product = one.softmax(-1) ** 0.3 * two.softmax(-1) ** 0.7
    mixed = mix_logits(one, two, initial_share=0.3).softmax(-1)
    torch.testing.assert_close(mixed, product / product.sum(-1, keepdim=True))
    shifted = mix_logits(one + 5, two - 2, initial_share=0.3).softmax(-1)  # normalised or not
    torch.testing.assert_close(shifted, mixed)


def test_what_cannot_occur_under_one_cannot_occur() -> None:
    one, two = logits(1), logits(2)
    one[0, 0] = two[0, 1] = -torch.inf
    one[0, 2] = two[0, 2] = -torch.inf
    mixed = mix_logits(one, two, initial_share=0.3)
    assert (mixed[0, :3] == -torch.inf).all()
    assert torch.isfinite(mixed[0, 3:]).all()


def test_half_precision_is_mixed_in_float32() -> None:
    one, two = logits(1, torch.bfloat16), logits(2, torch.bfloat16)
    expected = 0.3 * one.float() + 0.7 * two.float()
    torch.testing.assert_close(mix_logits(one, two, initial_share=0.3), expected, rtol=1e-6, atol=1e-6)


def test_what_does_not_fit_is_refused(tiny_initial: object) -> None:
    from untaxed.checkpoints import load_model

    with pytest.raises(ValueError, match=r"logits must have one shape, got \(3, 7\) and \(3, 6\)"):
        mix_logits(logits(1), logits(2)[:, :6], initial_share=0.3)
    with pytest.raises(ValueError, match=r"initial_share must be in \[0, 1\], got -0.1; logits beyond"):
        mix_logits(logits(1), logits(2), initial_share=-0.1)
    model, other = load_model(tiny_initial), load_model(tiny_initial)  # type: ignore[arg-type]
    other.config.vocab_size += 1
    with pytest.raises(ValueError, match="one vocabulary; initial has 32, aligned 33"):
        LogitMixture(model, other, 0.3)
