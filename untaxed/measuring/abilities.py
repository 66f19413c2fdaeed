"""Abilities: tasks that the model could do before, scored item by item without sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import DataError
from .batching import Scored
from .encoding import Remembered, encode_answers
from .forward import log_probs, totals
from .subject import Subject
from .suite import Measure, Scores, Split

Normalise = Literal["bytes", "tokens"]


@dataclass(frozen=True)
class Item:
    """A prompt and the one answer that counts as right."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Choice:
    """A prompt, its possible answers and the position of the right one."""

    prompt: str
    choices: tuple[str, ...]
    answer: int


def exact_match(name: str, items: Mapping[Split, Sequence[Item]], *, eos: bool = False, chance: float = 0.0) -> Measure:
    """Share of items whose answer greedy decoding would write, without decoding.

    Every token of the answer must be the most probable one given the prompt and the answer's earlier tokens, which
    one forward pass over prompt and answer tells. This is so exactly when greedy decoding writes the answer.

    Args:
        name: The ability's name in results.
        items: The items of each split; `untaxed.measuring.encoding` says how prompt and answer are joined.
        eos: Whether the model must also stop after the answer.
        chance: What guessing gets, where the prompt shows the possible answers.
    """
    memory = Remembered()

    def score(subject: Subject, split: Split) -> Scores:
        def encode(tokenizer: Any) -> list[Scored]:
            questions = [(item.prompt, (item.answer,)) for item in items[split]]
            return [one for (one,) in encode_answers(tokenizer, questions, eos=eos, where=f"{name} {split} item")]

        right = np.ones(len(items[split]))
        for batch in subject.remembered(memory, split, encode):
            wrong = subject.logits(batch).argmax(-1).cpu() != batch.targets
            right[batch.owners[wrong].numpy()] = 0.0
        return right[:, None]

    _check_items(name, items)
    return Measure("abilities", name, "mean", score, chance=chance)


def multiple_choice(
    name: str,
    items: Mapping[Split, Sequence[Choice]],
    *,
    normalise: Normalise | None = "bytes",
    chance: float | None = None,
) -> Measure:
    """Share of items whose right choice is the most probable one after the prompt.

    Args:
        name: The ability's name in results.
        items: The items of each split.
        normalise: Divides a choice's log-probability by the length of its UTF-8 text (``bytes``), by its number of
            tokens (``tokens``), or by nothing (None).
        chance: What guessing gets; by default the mean over all items of one over the number of choices.

    When m choices tie for the most probable, a right one among them counts 1/m: what guessing among them would get.

    Source: the log-likelihood choice of lm-evaluation-harness, ``acc`` and ``acc_norm``.
    Differs: ``acc_norm`` divides by characters, and a tie goes to the first choice.
    """
    memory = Remembered()

    def score(subject: Subject, split: Split) -> Scores:
        every = items[split]

        def encode(tokenizer: Any) -> list[Scored]:
            questions = [(item.prompt, item.choices) for item in every]
            groups = encode_answers(tokenizer, questions, eos=False, where=f"{name} {split} item")
            return [choice for group in groups for choice in group]

        texts = [choice for item in every for choice in item.choices]
        sums = np.zeros((len(texts), 2))
        for batch in subject.remembered(memory, split, encode):
            sums += totals(log_probs(subject.logits(batch), batch.targets), batch.owners, len(texts))
        total = sums[:, 0] / _lengths(texts, sums[:, 1], normalise)
        ends = np.cumsum([len(item.choices) for item in every])
        rows = np.split(total, ends[:-1])
        return np.array([[_share(row, item.answer)] for row, item in zip(rows, every, strict=True)])

    _check_items(name, items)
    _check_choices(name, items)
    if chance is None:
        chance = float(np.mean([1 / len(item.choices) for split in items.values() for item in split]))
    return Measure("abilities", name, "mean", score, chance=chance)


def _lengths(texts: Sequence[str], tokens: np.ndarray, normalise: Normalise | None) -> np.ndarray:
    if normalise == "bytes":
        return np.array([len(text.encode()) for text in texts], dtype=np.float64)
    return tokens if normalise == "tokens" else np.ones(len(texts))


def _share(row: np.ndarray, answer: int) -> float:
    best = row == row.max()
    return float(best[answer] / best.sum())


def _check_items(name: str, items: Mapping[Split, Sequence[Item | Choice]]) -> None:
    for split, rows in items.items():
        if not rows:
            raise DataError(f"ability {name!r} has no {split} items")


def _check_choices(name: str, items: Mapping[Split, Sequence[Choice]]) -> None:
    for split, rows in items.items():
        for at, item in enumerate(rows):
            if len(item.choices) < 2:
                raise DataError(f"{name} {split} item {at}: expected at least two choices, got {len(item.choices)}")
            if not 0 <= item.answer < len(item.choices):
                raise DataError(
                    f"{name} {split} item {at}: the answer is a position from 0 to {len(item.choices) - 1}, "
                    f"got {item.answer}"
                )
