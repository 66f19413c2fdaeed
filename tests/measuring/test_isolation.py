import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from untaxed.measuring import Item, Sampling, Subject, Suite, exact_match, forward_kl, measure, reward, undisturbed
from untaxed.measuring.drift import reverse_kl
from untaxed.measuring.perplexity import perplexity

from .conftest import tiny_llama, word_tokenizer


def spend_randomness():
    return random.random(), np.random.rand(), torch.rand(1)


def fingerprint(model, tokenizer):
    kind, keys, *rest = np.random.get_state()
    return (
        random.getstate(),
        (kind, keys.tolist(), *rest),
        torch.get_rng_state().tolist(),
        [module.training for module in model.modules()],
        model.config.to_dict(),
        model.generation_config.to_dict(),
        (tokenizer.padding_side, tokenizer.truncation_side),
        len(model.lm_head._forward_pre_hooks),
    )


@pytest.fixture
def training():
    """A model in the middle of training, one of its parts frozen in evaluation mode."""
    model = tiny_llama(dropout=0.1).train()
    model.model.layers[0].eval()
    model.config.use_cache = False
    return model, word_tokenizer()


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back(training, fails):
    model, tokenizer = training
    before = fingerprint(model, tokenizer)
    with pytest.raises(KeyError) if fails else nullcontext(), undisturbed(model, tokenizer):
        assert not any(module.training for module in model.modules())
        spend_randomness()
        model.train()
        model.config.use_cache = model.generation_config.use_cache = True
        tokenizer.padding_side, tokenizer.truncation_side = "left", "left"
        if fails:
            raise KeyError
    assert fingerprint(model, tokenizer) == before


def suite(score):
    prompts = ("w1 w2", "w3")
    return Suite(
        measures=(
            reward("proxy", score),
            exact_match("facts", {"validation": [Item("w1", "w2")]}),
            forward_kl(),
            reverse_kl(),
            perplexity("human", {"validation": ["w1 w2 w3"]}),
        ),
        select=("facts",),
        report=(),
        prompts={"validation": prompts},
        sampling=Sampling(max_new_tokens=4),
    )


def noisy_reward(prompts, completions):
    spend_randomness()
    return [0.0] * len(prompts)


def test_measuring_leaves_no_trace(training):
    model, tokenizer = training
    initial = Subject(tiny_llama(1).train(), tokenizer, suite(noisy_reward))
    before = fingerprint(model, tokenizer), fingerprint(initial.model, tokenizer)
    measure(Subject(model, tokenizer, initial.suite, initial), "validation")
    assert (fingerprint(model, tokenizer), fingerprint(initial.model, tokenizer)) == before


def trained(measured):
    """Weights after a few steps with dropout, measured between steps or not."""
    model, tokenizer = tiny_llama(dropout=0.3).train(), word_tokenizer()
    initial = Subject(tiny_llama(), tokenizer, suite(noisy_reward))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(7)
    for _ in range(4):
        ids = torch.randint(4, 44, (4, 8))
        model(input_ids=ids, labels=ids).loss.backward()
        if measured:
            measure(Subject(model, tokenizer, initial.suite, initial), "validation")
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def test_a_training_run_is_the_same_with_and_without_measuring():
    with_it, without = trained(True), trained(False)
    assert all(torch.equal(with_it[name], without[name]) for name in without)
