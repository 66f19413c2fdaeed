"""A tiny world for the measuring tests: a word-level tokenizer and untrained models with decided opinions."""

from __future__ import annotations

import random

import pytest
import torch

WORDS = [f"w{number}" for number in range(40)]
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]


def words(count: int, rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def word_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def tiny_llama(seed: int = 0, *, context: int = 64, dropout: float = 0.0):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=context,
        attention_dropout=dropout,
        initializer_range=0.4,  # opinions: with the usual 0.02 all words would be nearly as probable
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tokenizer():
    return word_tokenizer()


@pytest.fixture(scope="session")
def model():
    return tiny_llama(0)


@pytest.fixture(scope="session")
def other_model():
    return tiny_llama(1)


@pytest.fixture
def rng() -> random.Random:
    return random.Random(0)


@pytest.fixture(autouse=True)
def _global_random_state():
    """Tests draw from the global generator of torch too; each leaves it as it was."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
