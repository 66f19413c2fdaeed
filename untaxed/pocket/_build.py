"""Makes the pocket world's models again from their seed.

1. `pretrained`: a random Llama learns to look back on copied words, then reads raw documents.
2. `initial`: `pretrained` learns prompts and answers (SFT).
3. Preferences: two reviews of `initial` a prompt; which one is chosen is drawn by Bradley and Terry's model on the
   gold reward, so that annotators err more where reviews are nearly equal.
4. `proxy`: `initial` with a new head learns the preferences in TRL's `RewardTrainer`.

Weights are stored in float16 and used in float32: the rounded weights are the models, and each part starts from them.
One machine gives the same bytes at every build; another one gives models of the same abilities.
"""

from __future__ import annotations

import gzip
import json
import logging
import math
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import load_model, load_tokenizer
from ..measuring.sampling import sample
from ..measuring.suite import Sampling
from . import documents, items
from .language import END, save_tokenizer
from .sentiment import gold
from .training import Progress, Stage, new_model, train
from .world import DATA, MAX_NEW_TOKENS

_log = logging.getLogger(__name__)


PRETRAINING = (
    Stage("copying", documents.COPYING, 250, 1.5e-3, rows=32, warmup=20, hold=1.0),
    Stage("reading", documents.READING, 200, 1.5e-3, rows=32, warmup=20, hold=1.0),
    Stage("pretraining", documents.PRETRAINING, 800, 1.5e-3),
)
SFT = Stage("sft", documents.SFT, 800, 1.5e-3)


@dataclass(frozen=True)
class Recipe:
    """How much of everything; the defaults made what is shipped.

    Attributes:
        pretraining: The stages that make `pretrained`.
        sft: The stage that makes `initial`.
        width: Of the model.
        pairs: Preference pairs drawn, before equal ones are left out.
        annotator_scale: Difference of gold at which an annotator is right 73 times in 100.
        proxy_epochs: Passes of the reward model over the pairs.
        proxy_learning_rate: Of the reward model.
    """

    pretraining: tuple[Stage, ...] = PRETRAINING
    sft: Stage = SFT
    width: int = 128
    pairs: int = 3200
    annotator_scale: float = 0.1
    proxy_epochs: int = 2
    proxy_learning_rate: float = 3e-4


def build(
    out: Path | str = DATA, *, seed: int = 0, recipe: Recipe | None = None, progress: Progress = _log.info
) -> Path:
    """Builds `pretrained`, `initial`, `proxy` and the preferences into a directory.

    Args:
        out: The directory; what is there already is replaced.
        seed: Everything random follows from it.
        recipe: How much of everything.
        progress: Called with one line now and then.
    Returns:
        The directory.
    """
    out, recipe = Path(out), recipe or Recipe()
    out.mkdir(parents=True, exist_ok=True)
    with _one_thread():
        model = new_model(seed, width=recipe.width)
        for stage in recipe.pretraining:
            train(model, stage, seed=seed, progress=progress)
        model = _save(model, out / "pretrained")
        train(model, recipe.sft, seed=seed, progress=progress)
        model = _save(model, out / "initial")
        rows = preference_pairs(model, load_tokenizer(out / "initial"), recipe, seed)
        write_rows(rows, out / "preferences.jsonl.gz")
        progress(f"preferences: {len(rows)} pairs")
        train_proxy(out, rows, recipe, seed)
        progress("proxy: done")
    return out


@contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread: sums come in one order, so that a build repeats to the bit; nor is more faster here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _save(model: Any, directory: Path) -> Any:
    """Saves a model in float16 with its tokenizer, and loads it again: what follows starts from what is shipped."""
    model.half().save_pretrained(directory)
    save_tokenizer(str(directory))
    return load_model(directory)


def preference_pairs(model: Any, tokenizer: Any, recipe: Recipe, seed: int) -> list[dict[str, str]]:
    """Draws two reviews a prompt and an annotator's choice between them; equal reviews are left out."""
    rng = random.Random(f"{seed} preferences")
    prompts = rng.choices(items.review_prompts("train"), k=recipe.pairs)
    drawn = [
        sample(model, tokenizer, prompts, Sampling(MAX_NEW_TOKENS, batch_size=256, seed=2 * seed + side)).texts
        for side in (1, 2)
    ]
    rows = []
    for prompt, first, second in zip(prompts, *drawn):
        odds = math.exp((gold(second) - gold(first)) / recipe.annotator_scale)
        chosen, rejected = (first, second) if rng.random() < 1 / (1 + odds) else (second, first)
        if first != second and first and second:
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def write_rows(rows: list[dict[str, str]], path: Path) -> None:
    """Writes rows as gzipped JSON lines, without a time stamp: the same rows give the same bytes."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def train_proxy(out: Path, rows: list[dict[str, str]], recipe: Recipe, seed: int) -> None:
    """Trains the reward model on the preference pairs, starting from `initial`."""
    from datasets import Dataset
    from transformers import LlamaForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    tokenizer = load_tokenizer(out / "initial")
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification.from_pretrained(out / "initial", dtype=torch.float32, num_labels=1)
    with tempfile.TemporaryDirectory() as scratch:
        config = RewardConfig(
            output_dir=scratch,
            seed=seed,
            num_train_epochs=recipe.proxy_epochs,
            learning_rate=recipe.proxy_learning_rate,
            per_device_train_batch_size=32,
            warmup_steps=10,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
        )
        data = Dataset.from_list([joined(row) for row in rows])
        RewardTrainer(model, args=config, train_dataset=data, processing_class=tokenizer).train()
    model.half().save_pretrained(out / "proxy")
    save_tokenizer(str(out / "proxy"))


def joined(row: dict[str, str]) -> dict[str, str]:
    """A pair as two whole texts, each closed by the end token: what the reward model reads."""
    return {side: f"{row['prompt']} {row[side]}{END}" for side in ("chosen", "rejected")}
