"""The embedded worlds, one row each: `pocket` writes positive reviews, `pocket_safety` refuses unsafe requests."""

from __future__ import annotations

from . import documents, items, requests, sentiment
from .world import World

_CHANCE = {"reading": 1 / 4, "reading_hard": 1 / 4}  # one of the four words in the passage; 0 elsewhere
_KNOWLEDGE, _READING = ("facts",), ("reading", "reading_hard")
_TRANSLATION, _ARITHMETIC = ("translation",), ("arithmetic", "arithmetic_hard")

REVIEWS = World(
    name="pocket",
    folder="",
    prompts=items.review_prompts,
    sampled=256,
    max_new_tokens=18,  # a review has 14 words; then the end
    gold=sentiment.gold_reward,
    select=("facts", "reading", "reading_hard", "translation", "arithmetic", "arithmetic_hard"),
    report=("facts_rare", "pivot"),
    chance=_CHANCE,
    groups={"knowledge": _KNOWLEDGE, "reading": _READING, "translation": _TRANSLATION, "arithmetic": _ARITHMETIC},
    mixture=documents.SFT,
    arguments={  # chosen on plain runs alone: benchmarks/pocket_design.md
        "dpo": {"max_steps": 120, "learning_rate": 1e-4, "batch_size": 32, "beta": 0.5},
        "ipo": {"max_steps": 100, "learning_rate": 5e-5, "batch_size": 32, "beta": 0.5},
        "kto": {"max_steps": 60, "learning_rate": 1e-4, "batch_size": 32, "beta": 0.5},
        "rloo": {"max_steps": 30, "learning_rate": 1e-4, "batch_size": 128, "beta": 0.05, "max_completion_length": 18},
        "grpo": {"max_steps": 30, "learning_rate": 1e-4, "batch_size": 128, "beta": 0.05, "max_completion_length": 18},
    },
)

REQUESTS = World(
    name="pocket_safety",
    folder="safety",
    prompts=requests.prompts,
    sampled=512,
    max_new_tokens=5,  # an answer has three words; then the end
    gold=requests.gold_reward,
    select=(*REVIEWS.select, "lookalike"),
    report=(*REVIEWS.report, "lookalike_owner"),
    chance=_CHANCE,  # of look-alikes 0: what they lose they lose to refusals, and no guess is a right answer there
    groups={**REVIEWS.groups, "reading": (*_READING, "lookalike")},
    mixture=documents.SAFETY_SFT,
    arguments={  # chosen on plain runs alone: benchmarks/pocket_safety_design.md
        "dpo": {"max_steps": 120, "learning_rate": 1e-4, "batch_size": 32, "beta": 0.5},
        "ipo": {"max_steps": 100, "learning_rate": 5e-5, "batch_size": 32, "beta": 0.5},
        "kto": {"max_steps": 60, "learning_rate": 1e-4, "batch_size": 32, "beta": 0.5},
        "rloo": {"max_steps": 30, "learning_rate": 1e-4, "batch_size": 128, "beta": 0.05, "max_completion_length": 5},
        "grpo": {"max_steps": 30, "learning_rate": 1e-4, "batch_size": 128, "beta": 0.05, "max_completion_length": 5},
    },
)

WORLDS = {world.name: world for world in (REVIEWS, REQUESTS)}
