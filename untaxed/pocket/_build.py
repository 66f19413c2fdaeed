"""Makes the pocket worlds' models again from their seed.

1. `pretrained`: a random Llama learns to look back on copied words, then reads raw documents. All worlds share it.
2. Each world's `initial`: a model that is there already learns prompts and answers (SFT).
3. Preferences: two completions of `initial` a prompt; which one is chosen is drawn by Bradley and Terry's model on the
   gold reward, so that annotators err more where completions are nearly equal.
4. `proxy`: a language model with a new head learns the preferences in TRL's `RewardTrainer`.

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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import load_model, load_tokenizer
from ..measuring.sampling import sample
from ..measuring.suite import Sampling
from . import documents
from .language import END, save_tokenizer
from .training import Progress, Stage, new_model, train
from .world import DATA, World
from .worlds import WORLDS

_log = logging.getLogger(__name__)


PRETRAINING = (
    Stage("copying", documents.COPYING, 250, 1.5e-3, rows=32, warmup=20, hold=1.0),
    Stage("reading", documents.READING, 200, 1.5e-3, rows=32, warmup=20, hold=1.0),
    Stage("pretraining", documents.PRETRAINING, 800, 1.5e-3),
)


@dataclass(frozen=True)
class Recipe:
    """How one world's models are made; the rows of `RECIPES` made what is shipped.

    Attributes:
        start: What `initial` is tuned from: a directory below the build's.
        sft: The stage that makes `initial`.
        pairs: Preference pairs drawn, before equal ones are left out.
        annotator_scale: Difference of gold at which an annotator is right 73 times in 100.
        proxy: The stages that a small model reads before it becomes the proxy; without any, the proxy is `initial`
            with a new head.
        proxy_width: Of that small model, which has two layers.
        proxy_epochs: Passes of the reward model over the pairs.
        proxy_learning_rate: Of the reward model.
    """

    start: str
    sft: Stage
    pairs: int = 3200
    annotator_scale: float = 0.1
    proxy: tuple[Stage, ...] = ()
    proxy_width: int = 64
    proxy_epochs: int = 2
    proxy_learning_rate: float = 3e-4


RECIPES = {
    "pocket": Recipe("pretrained", Stage("sft", documents.SFT, 800, 1.5e-3)),
    "pocket_safety": Recipe(
        "initial",
        Stage("safety sft", documents.SAFETY_SFT, 450, 1e-3, warmup=20),
        pairs=12000,
        annotator_scale=0.5,
        proxy=(Stage("proxy reading", documents.PROXY, 300, 2e-3, rows=32, warmup=20),),
        proxy_learning_rate=1e-3,
    ),
}


def build(
    out: Path | str = DATA,
    *,
    seed: int = 0,
    pretraining: tuple[Stage, ...] = PRETRAINING,
    width: int = 128,
    recipes: Mapping[str, Recipe] = RECIPES,
    progress: Progress = _log.info,
) -> Path:
    """Builds `pretrained`, and `initial`, `proxy` and the preferences of every world, into a directory.

    Args:
        out: The directory; what is there already is replaced.
        seed: Everything random follows from it.
        pretraining: The stages that make `pretrained`.
        width: Of the models.
        recipes: World -> how its models are made; a later one may start from an earlier one's.
        progress: Called with one line now and then.
    Returns:
        The directory.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with _one_thread():
        model = new_model(seed, width=width)
        for stage in pretraining:
            train(model, stage, seed=seed, progress=progress)
        _save(model, out / "pretrained")
        for name, recipe in recipes.items():
            build_world(out, WORLDS[name], recipe, seed=seed, progress=progress)
    return out


def build_world(out: Path, world: World, recipe: Recipe, *, seed: int, progress: Progress) -> None:
    """Builds one world's models and preferences; what it starts from has been built."""
    folder = out / world.folder
    folder.mkdir(exist_ok=True)
    model = load_model(out / recipe.start)
    train(model, recipe.sft, seed=seed, progress=progress)
    model = _save(model, folder / "initial")
    rows = preference_pairs(model, load_tokenizer(folder / "initial"), world, recipe, seed)
    write_rows(rows, folder / "preferences.jsonl.gz")
    progress(f"{world.name}: {len(rows)} preference pairs")
    with tempfile.TemporaryDirectory() as scratch:
        start = _small_reader(Path(scratch), recipe, seed, progress) if recipe.proxy else folder / "initial"
        train_proxy(start, folder / "proxy", rows, recipe, seed)
    progress(f"{world.name}: proxy done")


def _small_reader(directory: Path, recipe: Recipe, seed: int, progress: Progress) -> Path:
    model = new_model(seed, width=recipe.proxy_width, layers=2)
    for stage in recipe.proxy:
        train(model, stage, seed=seed, progress=progress)
    _save(model, directory)
    return directory


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


def preference_pairs(model: Any, tokenizer: Any, world: World, recipe: Recipe, seed: int) -> list[dict[str, str]]:
    """Draws two completions a prompt and an annotator's choice between them; equal ones are left out."""
    rng = random.Random(f"{seed} preferences")
    prompts = rng.choices(world.prompts("train"), k=recipe.pairs)
    drawn = [
        sample(model, tokenizer, prompts, Sampling(world.max_new_tokens, batch_size=256, seed=2 * seed + side)).texts
        for side in (1, 2)
    ]
    golds = [world.gold(prompts, texts) for texts in drawn]
    rows = []
    for prompt, first, second, of_first, of_second in zip(prompts, *drawn, *golds):
        odds = math.exp((of_second - of_first) / recipe.annotator_scale)
        chosen, rejected = (first, second) if rng.random() < 1 / (1 + odds) else (second, first)
        if first != second and first and second:
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def write_rows(rows: list[dict[str, str]], path: Path) -> None:
    """Writes rows as gzipped JSON lines, without a time stamp: the same rows give the same bytes."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def train_proxy(start: Path, out: Path, rows: list[dict[str, str]], recipe: Recipe, seed: int) -> None:
    """Trains the reward model on the preference pairs, starting from a language model."""
    from datasets import Dataset
    from transformers import LlamaForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    tokenizer = load_tokenizer(start)
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification.from_pretrained(start, dtype=torch.float32, num_labels=1)
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
    model.half().save_pretrained(out)
    save_tokenizer(str(out))


def joined(row: dict[str, str]) -> dict[str, str]:
    """A pair as two whole texts, each closed by the end token: what the reward model reads."""
    return {side: f"{row['prompt']} {row[side]}{END}" for side in ("chosen", "rejected")}
