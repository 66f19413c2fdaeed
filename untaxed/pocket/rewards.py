"""The learned proxy reward: a small sequence classifier, loaded at its first use."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import no_bars


@functools.cache
def _load(directory: Path) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    with no_bars():
        model = LlamaForSequenceClassification.from_pretrained(directory, dtype=torch.float32, num_labels=1)
    return model.eval(), AutoTokenizer.from_pretrained(directory)


class ProxyReward:
    """Scores completions with a reward model of transformers, in batches sorted by length.

    Args:
        directory: Of the reward model and its tokenizer.
    """

    __name__ = "proxy"  # TRL names its metrics after the reward

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        """One number a completion; further columns, which TRL passes, are ignored."""
        model, tokenizer = _load(self.directory)
        texts = [f"{p.strip()} {c.strip()}{tokenizer.eos_token}" for p, c in zip(prompts, completions, strict=True)]
        order = sorted(range(len(texts)), key=lambda at: len(texts[at].split()))
        values = [0.0] * len(texts)
        for first in range(0, len(order), 128):
            chosen = order[first : first + 128]
            encoded = tokenizer([texts[at] for at in chosen], padding=True, padding_side="right", return_tensors="pt")
            logits = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
            for at, value in zip(chosen, logits[:, 0].tolist()):
                values[at] = value
        return values
