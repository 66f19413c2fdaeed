"""Abilities: tasks that the model could do before, scored item by item without sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ..errors import DataError, RunFailed
from .batching import Batch, Scored
from .encoding import Remembered, chat_prompts, encode, encode_answers
from .forward import totals
from .sampling import sample
from .subject import Fitting, Subject
from .suite import Measure, Sampling, Scores, Shown, Split, counted

Normalise = Literal["bytes", "characters", "tokens"]
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


def exact_match(
    name: str, items: Mapping[Split, Sequence[Item]], *, eos: bool = False, chat: bool = False, chance: float = 0.0
) -> Measure:
    """Share of items whose answer greedy decoding would write, without decoding.

    Every token of the answer must be the most probable one given the prompt and the answer's earlier tokens, which
    one forward pass over prompt and answer tells. This is so exactly when greedy decoding writes the answer.

    Args:
        name: The ability's name in results.
        items: The items of each split; `untaxed.measuring.encoding` says how prompt and answer are joined.
        eos: Whether the model must also stop after the answer.
        chat: Whether the prompt is a user's message in the model's chat template.
        chance: What guessing gets, where the prompt shows the possible answers.
    """
    memory = Remembered()

    def fitting(subject: Subject, split: Split) -> Fitting:
        def encoded(tokenizer: Any) -> list[list[Scored]]:
            questions = [(item.prompt, (item.answer,)) for item in items[split]]
            return _encoded(tokenizer, questions, eos=eos, chat=chat, where=f"{name} {split} item")

        return subject.fitting(memory, split, encoded, name)

    def score(subject: Subject, split: Split) -> Scores:
        found = fitting(subject, split)
        right = np.ones(len(found.kept))
        for batch in found.batches:
            tokens = _written_next(subject, batch).numpy()
            with np.errstate(invalid="ignore"):  # what is not a number stays so, and is said below
                np.minimum.at(right, batch.owners.numpy(), tokens)
        return _numbers(right, found.kept, f"{name} {split}")[:, None]

    def show(subject: Subject, split: Split, places: Sequence[int]) -> list[Shown]:
        kept = fitting(subject, split).kept
        chosen = [items[split][kept[place]] for place in places]
        written = _written(subject, chosen, chat)
        return [Shown(item.prompt, item.answer, text) for item, text in zip(chosen, written, strict=True)]

    _check_items(name, items)
    return Measure("abilities", name, "mean", score, chance=chance, show=show, items=counted(items))


def _written_next(subject: Subject, batch: Batch) -> Tensor:
    """Whether each scored token is the most probable one, ``(scored,)``: 1 or 0, not a number where the model's is."""

    def compute() -> Tensor:
        best, tokens = subject.logits(batch).max(-1)
        right = (tokens.cpu() == batch.targets).double()
        return right.masked_fill(best.isnan().cpu(), float("nan"))

    return subject.per_token(batch, "written_next", compute)


def _written(subject: Subject, items: Sequence[Item], chat: bool) -> Sequence[str]:
    """What the model writes greedily after each prompt, a little longer than the longest answer."""
    lengths = [len(ids) for ids in encode(subject.tokenizer, [item.answer for item in items])]
    longest = max(lengths, default=0) + MORE
    prompts = [item.prompt for item in items]
    if chat:
        prompts = chat_prompts(subject.tokenizer, prompts, "item")
    return sample(subject.model, subject.tokenizer, prompts, Sampling(longest, 0.0), subject.journal).texts


def multiple_choice(
    name: str,
    items: Mapping[Split, Sequence[Choice]],
    *,
    normalise: Normalise | None = "bytes",
    chat: bool = False,
    chance: float | None = None,
) -> Measure:
    """Share of items whose right choice is the most probable one after the prompt.

    Args:
        name: The ability's name in results.
        items: The items of each split.
        normalise: Divides a choice's log-probability by the length of its UTF-8 text (``bytes``), by its number of
            ``characters`` or ``tokens``, or by nothing (None).
        chat: Whether the prompt is a user's message in the model's chat template.
        chance: What guessing gets; by default the mean over all items of one over the number of choices.

    When m choices tie for the most probable, a right one among them counts 1/m: what guessing among them would get.

    Source: the log-likelihood choice of lm-evaluation-harness: ``acc`` divides by nothing, ``acc_norm`` by characters.
    Differs: there a tie goes to the first choice.
    """
    memory = Remembered()

    def groups(tokenizer: Any, every: Sequence[Choice], split: Split) -> list[list[Scored]]:
        questions = [(item.prompt, item.choices) for item in every]
        return _encoded(tokenizer, questions, eos=False, chat=chat, where=f"{name} {split} item")

    def fitting(subject: Subject, split: Split) -> Fitting:
        return subject.fitting(memory, split, lambda tokenizer: groups(tokenizer, items[split], split), name)

    def score(subject: Subject, split: Split) -> Scores:
        found = fitting(subject, split)
        kept = [items[split][at] for at in found.kept]
        rows = _totals(subject, found.batches, kept, normalise)
        _numbers(np.array([row.sum() for row in rows]), found.kept, f"{name} {split}")
        return np.array([[_share(row, item.answer)] for row, item in zip(rows, kept, strict=True)])

    def show(subject: Subject, split: Split, places: Sequence[int]) -> list[Shown]:
        kept = fitting(subject, split).kept
        chosen = [items[split][kept[place]] for place in places]
        flat = [one for group in groups(subject.tokenizer, chosen, split) for one in group]
        rows = _totals(subject, subject.batches(flat), chosen, normalise)
        best = (item.choices[int(row.argmax())] for row, item in zip(rows, chosen, strict=True))
        return [Shown(item.prompt, item.choices[item.answer], text) for item, text in zip(chosen, best, strict=True)]

    _check_items(name, items)
    _check_choices(name, items)
    if chance is None:
        chance = float(np.mean([1 / len(item.choices) for split in items.values() for item in split]))
    return Measure("abilities", name, "mean", score, chance=chance, show=show, items=counted(items))


def _encoded(
    tokenizer: Any, questions: Sequence[tuple[str, Sequence[str]]], *, eos: bool, chat: bool, where: str
) -> list[list[Scored]]:
    if chat:
        prompts = chat_prompts(tokenizer, [prompt for prompt, _ in questions], where)
        questions = [(prompt, answers) for prompt, (_, answers) in zip(prompts, questions, strict=True)]
    return encode_answers(tokenizer, questions, eos=eos, where=where)


def _totals(
    subject: Subject, batches: Sequence[Batch], items: Sequence[Choice], normalise: Normalise | None
) -> list[np.ndarray]:
    """The log-probability of every choice of every item, divided by its length."""
    texts = [choice for item in items for choice in item.choices]
    sums = np.zeros((len(texts), 2))
    for batch in batches:
        sums += totals(subject.log_probs(batch), batch.owners, len(texts))
    ends = np.cumsum([len(item.choices) for item in items])
    return np.split(sums[:, 0] / _lengths(texts, sums[:, 1], normalise), ends[:-1])


def _numbers(values: np.ndarray, kept: Sequence[int], where: str) -> np.ndarray:
    """The values, none of which may be undefined."""
    broken = np.flatnonzero(np.isnan(values))
    if len(broken):
        raise RunFailed(f"{where} item {kept[broken[0]]}: a log-likelihood is not a number: the model has diverged")
    return values


def _lengths(texts: Sequence[str], tokens: np.ndarray, normalise: Normalise | None) -> np.ndarray:
    if normalise == "bytes":
        return np.array([len(text.encode()) for text in texts], dtype=np.float64)
    if normalise == "characters":
        return np.array([len(text) for text in texts], dtype=np.float64)
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
