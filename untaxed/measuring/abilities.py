"""Abilities: tasks that the model could do before, scored item by item without sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import DataError
from .batching import Batch, Scored
from .encoding import Remembered, encode, encode_answers
from .forward import log_probs, totals
from .sampling import sample
from .subject import Subject
from .suite import Measure, Sampling, Scores, Shown, Split

Normalise = Literal["bytes", "tokens"]
MORE = 8  # tokens beyond the longest answer that are shown of what a model writes


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
        def encoded(tokenizer: Any) -> list[Scored]:
            questions = [(item.prompt, (item.answer,)) for item in items[split]]
            return [one for (one,) in encode_answers(tokenizer, questions, eos=eos, where=f"{name} {split} item")]

        right = np.ones(len(items[split]))
        for batch in subject.remembered(memory, split, encoded):
            wrong = subject.logits(batch).argmax(-1).cpu() != batch.targets
            right[batch.owners[wrong].numpy()] = 0.0
        return right[:, None]

    def show(subject: Subject, split: Split, places: Sequence[int]) -> list[Shown]:
        chosen = [items[split][place] for place in places]
        return [Shown(item.prompt, item.answer, text) for item, text in zip(chosen, _written(subject, chosen))]

    _check_items(name, items)
    return Measure("abilities", name, "mean", score, chance=chance, show=show)


def _written(subject: Subject, items: Sequence[Item]) -> Sequence[str]:
    """What the model writes greedily after each prompt, a little longer than the longest answer."""
    lengths = [len(ids) for ids in encode(subject.tokenizer, [item.answer for item in items])]
    longest = max(lengths, default=0) + MORE
    return sample(subject.model, subject.tokenizer, [item.prompt for item in items], Sampling(longest, 0.0)).texts


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

    def encoded(tokenizer: Any, every: Sequence[Choice], split: Split) -> list[Scored]:
        questions = [(item.prompt, item.choices) for item in every]
        groups = encode_answers(tokenizer, questions, eos=False, where=f"{name} {split} item")
        return [choice for group in groups for choice in group]

    def likelihoods(subject: Subject, every: Sequence[Choice], batches: Sequence[Batch]) -> list[np.ndarray]:
        texts = [choice for item in every for choice in item.choices]
        sums = np.zeros((len(texts), 2))
        for batch in batches:
            sums += totals(log_probs(subject.logits(batch), batch.targets), batch.owners, len(texts))
        total = sums[:, 0] / _lengths(texts, sums[:, 1], normalise)
        return np.split(total, np.cumsum([len(item.choices) for item in every])[:-1])

    def score(subject: Subject, split: Split) -> Scores:
        every = items[split]
        batches = subject.remembered(memory, split, lambda tokenizer: encoded(tokenizer, every, split))
        rows = likelihoods(subject, every, batches)
        return np.array([[_share(row, item.answer)] for row, item in zip(rows, every, strict=True)])

    def show(subject: Subject, split: Split, places: Sequence[int]) -> list[Shown]:
        chosen = [items[split][place] for place in places]
        rows = likelihoods(subject, chosen, subject.batches(encoded(subject.tokenizer, chosen, split)))
        best = (item.choices[int(row.argmax())] for row, item in zip(rows, chosen, strict=True))
        return [Shown(item.prompt, item.choices[item.answer], text) for item, text in zip(chosen, best, strict=True)]

    _check_items(name, items)
    _check_choices(name, items)
    if chance is None:
        chance = float(np.mean([1 / len(item.choices) for split in items.values() for item in split]))
    return Measure("abilities", name, "mean", score, chance=chance, show=show)


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
