"""The losses as functions of logits: equal to the measures of the same name, with the gradients that are derived."""

from __future__ import annotations

import math

import pytest
import torch

from untaxed import divergence
from untaxed.errors import DataError, Unsupported
from untaxed.objectives import (
    RPO,
    Distill,
    KLLoss,
    Replay,
    distillation,
    forward_kl,
    negative_log_likelihood,
    reverse_kl,
)
from untaxed.sites import Context


def logits(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (3 * torch.randn(5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_kl_is_that_of_the_measures(dtype: torch.dtype) -> None:
    policy, initial = logits(1, dtype), logits(2, dtype)
    forward, reverse = forward_kl(policy, initial), reverse_kl(policy, initial)
    assert forward.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(forward.double(), divergence.token_kl(initial, policy), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(reverse.double(), divergence.token_kl(policy, initial), rtol=1e-5, atol=1e-6)
    assert torch.equal(forward_kl(policy, policy), torch.zeros_like(forward))


def test_the_gradient_of_the_forward_kl_is_the_difference_of_probabilities() -> None:
    policy, initial = logits(1).requires_grad_(), logits(2)
    forward_kl(policy, initial).sum().backward()
    torch.testing.assert_close(policy.grad, policy.detach().softmax(-1) - initial.softmax(-1))
    for function in (forward_kl, reverse_kl, lambda q, p: distillation(q, p, temperature=3.0)):
        assert torch.autograd.gradcheck(function, (logits(1).requires_grad_(), logits(2)))


def test_tokens_that_cannot_occur_cost_nothing_and_give_no_gradient() -> None:
    policy, initial = logits(1), logits(2)
    policy[:, 0] = initial[:, 0] = -torch.inf
    policy.requires_grad_()
    for function in (forward_kl, reverse_kl):
        value = function(policy, initial)
        torch.testing.assert_close(value, function(policy[:, 1:], initial[:, 1:]))
        value.sum().backward()
        assert torch.isfinite(policy.grad).all()  # type: ignore[arg-type]
    certain = initial.clone()
    certain[:, 1] = 0.0
    assert torch.isinf(forward_kl(policy.detach(), certain.index_fill(1, torch.tensor([0]), 0.0))).all()


def test_temperature_1_is_the_forward_kl_and_a_high_one_the_difference_of_logits() -> None:
    policy, initial = logits(1), logits(2)
    torch.testing.assert_close(distillation(policy, initial, temperature=1.0), forward_kl(policy, initial))
    hot = distillation(policy, initial, temperature=1e4)
    torch.testing.assert_close(hot, (policy - initial).var(-1, unbiased=False) / 2, rtol=1e-3, atol=1e-3)


def test_logits_are_softened_in_float32() -> None:
    policy, initial = logits(1).bfloat16(), logits(2).bfloat16()
    exact = distillation(policy.double(), initial.double(), temperature=3.0)
    torch.testing.assert_close(distillation(policy, initial, temperature=3.0).double(), exact, rtol=1e-5, atol=1e-6)


def test_the_likelihood_is_that_of_the_targets() -> None:
    targets = torch.tensor([0, 1, 2, 3, 6])
    expected = -logits(1).log_softmax(-1)[torch.arange(5), targets]
    torch.testing.assert_close(negative_log_likelihood(logits(1), targets), expected)
    assert negative_log_likelihood(torch.zeros(1, 4), torch.tensor([2])).item() == pytest.approx(math.log(4))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a text", "replay: texts must be a list of texts, got 'a text'"),
        ({"text": "a"}, "replay: texts must be a list of texts"),
        (7, "replay: texts must be a list of texts, got 7"),
        (["a", {"text": "b"}], r"replay: texts 2 is no text but dict .*; give its text, such as row\['text'\]"),
        (["a", None], "replay: texts 2 is no text but NoneType None"),
        (["a", "  "], "replay: texts 2 is empty; leave it out"),
    ],
)
def test_texts_in_the_wrong_form_are_named(texts: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Replay(texts=texts)  # type: ignore[arg-type]


def test_what_is_needed_is_what_is_not_given() -> None:
    assert Replay().needed == {"replay"}
    assert KLLoss().needed == Distill().needed == {"general_prompts"}
    assert KLLoss(on="own").needed == {"prompts"}
    assert not Replay(texts=["a"]).needed
    assert not KLLoss(prompts=["a"], on="own").needed
    assert "texts" not in Replay(texts=["a"]).settings()
    with pytest.raises(Unsupported, match="kl_loss cannot act under fsdp1"):
        KLLoss(prompts=["a"]).check(Context("dpo", 5, backend="fsdp1"))
    with pytest.raises(Unsupported, match="replay acts during training"):
        Replay().check(Context(None, None))
    with pytest.raises(Unsupported, match="rloo has no chosen answers beside rejected ones"):
        RPO().check(Context("rloo", 5))
