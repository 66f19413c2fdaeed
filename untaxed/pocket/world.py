"""The pocket world as the rest of the library uses it: where its models are, what is learned, what is measured."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

from ..errors import CheckpointError
from ..measuring.abilities import Item, exact_match
from ..measuring.drift import forward_kl, perplexity, reverse_kl
from ..measuring.rewards import reward
from ..measuring.suite import SPLITS, Measure, Sampling, Split, Suite
from ..training.task import Task
from . import documents, items, rehearsal
from .rewards import ProxyReward
from .sentiment import gold_reward

DATA = Path(__file__).parent / "data"
EVERY = 20  # steps between two measurements, unless a study says otherwise
MAX_NEW_TOKENS = 18  # a review has 14 words; then the end
SELECT = ("facts", "reading", "reading_hard", "translation", "arithmetic", "arithmetic_hard")
REPORT = ("facts_rare", "pivot")
CHANCE = {"reading": 1 / 4, "reading_hard": 1 / 4}  # one of the four words in the passage; 0 elsewhere
# chosen on plain runs alone: benchmarks/pocket_design.md
ARGUMENTS: dict[str, dict[str, object]] = {
    "dpo": {"max_steps": 120, "learning_rate": 1e-4, "batch_size": 32, "beta": 0.5},
    "ipo": {"max_steps": 100, "learning_rate": 5e-5, "batch_size": 32, "beta": 0.5},
    "kto": {"max_steps": 60, "learning_rate": 1e-4, "batch_size": 32, "beta": 0.5},
    "rloo": {"max_steps": 30, "learning_rate": 1e-4, "batch_size": 128, "beta": 0.05, "max_completion_length": 18},
    "grpo": {"max_steps": 30, "learning_rate": 1e-4, "batch_size": 128, "beta": 0.05, "max_completion_length": 18},
}


def pretrained_path() -> Path:
    """Directory of the model after pretraining on raw documents."""
    return _directory("pretrained")


def initial_path() -> Path:
    """Directory of the model that alignment starts from: `pretrained` after SFT."""
    return _directory("initial")


def proxy_path() -> Path:
    """Directory of the proxy reward model."""
    return _directory("proxy")


def _directory(name: str) -> Path:
    if not (DATA / name / "model.safetensors").is_file():
        raise CheckpointError(f"the pocket model {DATA / name} is missing; make it with: untaxed pocket build")
    return DATA / name


def preferences() -> list[dict[str, str]]:
    """Preference pairs: ``prompt``, ``chosen`` and ``rejected``, sampled from `initial`."""
    with gzip.open(DATA / "preferences.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def suite(count: int = 1000) -> Suite:
    """What is measured on pocket models.

    Args:
        count: Questions an ability and split, at most 1,000.
    """
    measures: list[Measure] = [reward("gold", gold_reward), reward("proxy", ProxyReward(DATA / "proxy"))]
    measures += [_ability(name, count) for name in items.ABILITIES]
    measures += [forward_kl(), reverse_kl(), perplexity("perplexity", {split: _texts(split) for split in SPLITS})]
    prompts = {split: tuple(items.review_prompts(split)[:256]) for split in SPLITS}
    return Suite(tuple(measures), SELECT, REPORT, prompts, Sampling(MAX_NEW_TOKENS, batch_size=256))


def _ability(name: str, count: int) -> Measure:
    asked = {split: [Item(*question) for question in items.questions(name, split, count)] for split in SPLITS}
    return exact_match(name, asked, chance=CHANCE.get(name, 0.0))


def _texts(split: Split, count: int = 200) -> list[str]:
    """Raw documents from a seed of their own: what people wrote, as far as this world has people."""
    rng = random.Random(f"texts {split}")
    return [documents.raw(rng) for _ in range(count)]


def task(count: int = 1000) -> Task:
    """The alignment task: write a positive review. Also the default of `untaxed study` and of `untaxed demo`."""
    return Task(
        initial=initial_path(),
        pretrained=pretrained_path(),
        suite=suite(count),
        preferences=preferences(),
        prompts=items.review_prompts("train"),
        reward=ProxyReward(DATA / "proxy"),
        arguments=ARGUMENTS,
        general_prompts=rehearsal.general_prompts(),
        reference_sets=rehearsal.reference_sets(),
        replay=rehearsal.replay(),
    )
