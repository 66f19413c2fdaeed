import copy
import random

import pytest
import torch

from untaxed.errors import DataError, Unsupported
from untaxed.measuring.sampling import invert, sample
from untaxed.measuring.suite import Sampling

from .conftest import WORDS, tiny_llama, words

PROMPTS = tuple(words(length, random.Random(length)) for length in (1, 5, 3, 2, 5, 7, 1, 4))


def greedy(model, tokenizer, prompt, count):
    from transformers import GenerationConfig

    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    config = GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=2, pad_token_id=0)
    made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return made[0, ids.shape[1] :].tolist()


def drawn(completions):
    return [row[mask].tolist() for row, mask in zip(completions.token_ids, completions.mask, strict=True)]


def test_inverting_the_distribution_function():
    logits = torch.tensor([0.2, 0.0, 0.5, 0.3]).log()  # cut at 0.2, 0.2, 0.7 and 1
    uniform = torch.tensor([0.0, 0.1, 0.25, 0.69, 0.71, 0.999], dtype=torch.float64)
    assert invert(logits.expand(6, 4), uniform, 1.0).tolist() == [0, 0, 2, 2, 3, 3]


def test_a_token_that_cannot_occur_is_never_drawn():
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf]).expand(2, 3)
    assert invert(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), 1.0).tolist() == [1, 1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature):
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    count = 40_000
    uniform = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shares = torch.bincount(invert(logits.expand(count, 12), uniform, temperature), minlength=12) / count
    expected = (logits[0] / temperature).softmax(-1)
    assert torch.all((shares - expected).abs() < 5 * (expected / count).sqrt() + 1e-4)


def test_the_first_token_of_samples_follows_the_model(model, tokenizer):
    made = sample(model, tokenizer, ["w0 w1"] * 4000, Sampling(max_new_tokens=1, batch_size=500, seed=3))
    shares = torch.bincount(made.token_ids[:, 0], minlength=44) / 4000
    expected = model(torch.tensor([[4, 5]])).logits[0, -1].softmax(-1)
    assert torch.all((shares - expected).abs() < 5 * (expected / 4000).sqrt() + 1e-3)


@pytest.mark.parametrize("make", [tiny_llama, "gpt2"])
def test_temperature_zero_equals_greedy_generation(make, tokenizer):
    if make == "gpt2":
        from .test_forward import gpt2 as make
    model = make().eval()
    made = sample(model, tokenizer, PROMPTS, Sampling(max_new_tokens=12, temperature=0.0, batch_size=5))
    assert drawn(made) == [greedy(model, tokenizer, prompt, 12) for prompt in PROMPTS]


def test_draws_do_not_depend_on_batches(model, tokenizer):
    alone, together = (sample(model, tokenizer, PROMPTS, Sampling(batch_size=size, seed=5)) for size in (1, 64))
    assert drawn(alone) == drawn(together)


def test_the_seed_decides(model, tokenizer):
    first, again, other = (drawn(sample(model, tokenizer, PROMPTS, Sampling(seed=seed))) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_models_share_their_random_numbers(model, tokenizer):
    assert drawn(sample(copy.deepcopy(model), tokenizer, PROMPTS, Sampling())) == drawn(
        sample(model, tokenizer, PROMPTS, Sampling())
    )


def test_completions_end_with_eos_or_at_the_limit(model, tokenizer):
    made = sample(model, tokenizer, PROMPTS * 8, Sampling(max_new_tokens=20))
    ended = 0
    for ids, text in zip(drawn(made), made.texts, strict=True):
        assert 2 not in ids[:-1]
        assert ids[-1] == 2 or len(ids) == 20
        assert not set(text.split()) - set(WORDS) - {"<unk>"}
        ended += ids[-1] == 2
    assert 0 < ended < len(made.texts)
    assert not made.token_ids[~made.mask].any()


def test_completions_as_scored_items(model, tokenizer):
    made = sample(model, tokenizer, PROMPTS, Sampling(max_new_tokens=5))
    for prompt, ids, item in zip(PROMPTS, drawn(made), made.scored(), strict=True):
        assert list(item.tokens) == tokenizer(prompt)["input_ids"] + ids
        assert item.start == len(prompt.split())


def test_the_generation_config_of_the_model_plays_no_part(tokenizer):
    model = tiny_llama()
    plain = drawn(sample(model, tokenizer, PROMPTS, Sampling()))
    model.generation_config.update(top_k=1, repetition_penalty=5.0, temperature=0.1, do_sample=True)
    before = model.generation_config.to_dict()
    assert drawn(sample(model, tokenizer, PROMPTS, Sampling())) == plain
    assert model.generation_config.to_dict() == before


def test_global_random_states_are_not_touched(model, tokenizer):
    before = random.getstate(), torch.get_rng_state()
    sample(model, tokenizer, PROMPTS, Sampling())
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_prompt_that_does_not_fit_is_named(tokenizer):
    with pytest.raises(DataError, match=r"prompt 1 has 5 tokens, and 24 new ones do not fit .* context of 28"):
        sample(tiny_llama(context=28), tokenizer, ["w0", "w0 w1 w2 w3 w4"], Sampling(max_new_tokens=24))


def test_a_model_without_a_cache_is_refused(tokenizer):
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=44, hidden_size=16, num_hidden_layers=1, state_size=4)).eval()
    with pytest.raises(Unsupported, match="MambaForCausalLM keeps no key-value cache"):
        sample(model, tokenizer, ["w0"], Sampling())


def test_no_prompts(model, tokenizer):
    with pytest.raises(DataError, match="no prompts"):
        sample(model, tokenizer, [], Sampling())
