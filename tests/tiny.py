"""A random two-layer Llama with a word-level tokenizer, and a task for it: seconds, not minutes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from untaxed.checkpoints import save_model
from untaxed.measuring.suite import Suite
from untaxed.training import Task

WORDS = [f"w{number}" for number in range(28)]


def build_model_dir(path: Path, *, dtype: str = "float32", tied: bool = False, seed: int = 0) -> Path:
    """Saves the model and its tokenizer; the weights depend on the seed alone."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    config = _config(tie_word_embeddings=tied)
    save_model(LlamaForCausalLM(config).to(getattr(torch, dtype)), word_tokenizer(), path)
    return path


def build_classifier_dir(path: Path, *, labels: tuple[str, ...] = ("reward",), seed: int = 0, **changes: Any) -> Path:
    """Saves a random sequence classifier of decided opinions and its tokenizer; `changes` are of its config."""
    import torch
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(seed)
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: at for at, name in enumerate(labels)}}
    config = _config(initializer_range=0.3, **names, **changes)
    save_model(LlamaForSequenceClassification(config), word_tokenizer(), path)
    return path


def word_tokenizer() -> Any:
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def _config(**changes: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        **{
            "vocab_size": 4 + len(WORDS),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **changes,
        }
    )


def reward(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """The share of words with an even number."""
    return [
        sum(word[1:].isdigit() and int(word[1:]) % 2 == 0 for word in text.split()) / max(1, len(text.split()))
        for text in completions
    ]


def build_task(initial: Path) -> Task:
    """24 preference rows and prompts over the tiny vocabulary; nothing is measured."""
    prompts = tuple(f"{WORDS[i % 28]} {WORDS[(5 * i + 1) % 28]}" for i in range(24))
    rows = [
        {"prompt": prompt, "chosen": f" {WORDS[(2 * i) % 28]} <eos>", "rejected": f" {WORDS[(2 * i + 1) % 28]} <eos>"}
        for i, prompt in enumerate(prompts)
    ]
    suite = Suite(measures=(), select=(), report=(), prompts={"validation": prompts[:4], "test": prompts[4:8]})
    pairs = {"max_steps": 6, "learning_rate": 1e-3, "batch_size": 4, "warmup_steps": 0}
    samples = {**pairs, "batch_size": 8, "num_generations": 2, "max_completion_length": 6}
    arguments = {"dpo": pairs, "ipo": pairs, "kto": pairs, "rloo": samples, "grpo": samples}
    return Task(initial=initial, suite=suite, preferences=rows, prompts=prompts, reward=reward, arguments=arguments)
