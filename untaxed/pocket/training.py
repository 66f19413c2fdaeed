"""The plain training loop of the pocket models: pretraining and SFT of a tiny Llama."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from .documents import IGNORED, Mixture, batch
from .language import END, PAD, VOCABULARY, WORD_ID

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """One stretch of training: what is read, how long and how fast.

    Attributes:
        name: For progress lines.
        mixture: The kinds of documents with their weights.
        steps: Optimizer steps.
        learning_rate: Its highest value.
        rows: Rows a step.
        warmup: Steps until the rate is at its highest.
        hold: Share of the steps after which the rate starts to fall, straight down to a twentieth; 1 never.
    """

    name: str
    mixture: Mixture
    steps: int
    learning_rate: float
    rows: int = 48
    warmup: int = 50
    hold: float = 0.3

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / self.warmup)
        past = step / self.steps
        fall = 1.0 if past <= self.hold else 0.05 + 0.95 * (1 - past) / (1 - self.hold)
        return self.learning_rate * rise * fall


def new_model(seed: int, *, width: int = 128, layers: int = 3) -> Any:
    """A tiny Llama with random weights: heads of 32, everything else as in large ones."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=128,
        tie_word_embeddings=False,  # tied ones make a shifted word foretell itself, and alignment stutter
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=WORD_ID[END],
        pad_token_id=WORD_ID[PAD],
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def train(model: Any, stage: Stage, *, seed: int, progress: Progress) -> None:
    """Runs one stage on a model, in place: AdamW on the words to be learned, documents drawn from the seed."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.1)
    rng = random.Random(f"{seed} {stage.name}")
    model.train()
    for step in range(stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.rate(step)
        ids, labels = map(torch.from_numpy, batch(stage.mixture, stage.rows, rng))
        logits = model(input_ids=ids, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0 or step + 1 == stage.steps:
            progress(f"{stage.name}: step {step + 1} of {stage.steps}, loss {loss.item():.3f}")
    model.eval()
