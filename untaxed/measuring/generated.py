"""Abilities that are written out: greedy answers, compared with the right ones item by item."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError
from . import answers, corpus, instructions
from .encoding import chat_prompts
from .generating import Decoding
from .subject import Subject
from .suite import Measure, Scores, Shown, Split, counted


@dataclass(frozen=True)
class Question:
    """A prompt and what is right: answers as texts, or instructions that the answer has to follow."""

    prompt: str
    rights: tuple[Any, ...]


@dataclass(frozen=True)
class Metric:
    """How a written answer is scored.

    Attributes:
        summary: What the number is, for readers.
        score: Maps an answer and what is right to one number, or to several counts.
        statistic: How these become the ability's number: a row of `untaxed.measuring.statistics.STATISTICS`.
        unit: What the number counts.
    """

    summary: str
    score: Callable[[str, Sequence[Any]], float | Sequence[float]]
    statistic: str = "mean"
    unit: str = "share right"

    def counts(self, answer: str, rights: Sequence[Any]) -> list[float]:
        """The row of sufficient statistics of one answer; an empty one is worth nothing, whatever is right."""
        score = 0.0 if not answer and self.statistic == "mean" else self.score(answer, rights)
        return list(score) if isinstance(score, Sequence) else [score]


METRICS: Mapping[str, Metric] = {
    "match": Metric("the answer is right letter by letter", answers.match),
    "number": Metric("the answer is the right number", answers.number),
    "em": Metric("right but for case, articles and punctuation (SQuAD)", answers.exact),
    "f1": Metric("overlap of words with the right answer (SQuAD)", answers.f1, unit="overlap"),
    "drop_em": Metric("right but for case, articles, marks and how numbers are written (DROP)", answers.drop_exact),
    "drop_f1": Metric("overlap of words, numbers must agree (DROP)", answers.drop_f1, unit="overlap"),
    "bleu": Metric("corpus BLEU, 0 to 100", corpus.bleu_counts, "bleu", "BLEU"),
    "chrf": Metric("corpus chrF2, 0 to 100", corpus.chrf_counts, "chrf", "chrF"),
    "instructions": Metric("all instructions of the prompt are followed (IFEval)", instructions.all_followed),
    "instructions_share": Metric("share of a prompt's instructions that are followed", instructions.share_followed),
}


def generated(
    name: str,
    items: Mapping[Split, Sequence[Question]],
    *,
    metric: str,
    decoding: Decoding,
    extract: str | None = None,
    take: str = "last",
    chat: bool = False,
    chance: float = 0.0,
) -> Measure:
    """An ability measured on what the model writes by greedy decoding.

    An empty answer scores 0 and is counted; so is one in which `extract` finds nothing.

    Args:
        name: The ability's name in results.
        items: The questions of each split.
        metric: A row of `METRICS`.
        decoding: How long the answer may be and where it ends.
        extract: A regular expression that finds the answer in the text, see `untaxed.measuring.answers.extracted`.
        take: The ``first`` or ``last`` place that it finds.
        chat: Whether the prompt is a user's message in the model's chat template.
        chance: What guessing gets.
    """
    row, pattern = METRICS[metric], None if extract is None else re.compile(extract)

    def written(subject: Subject, split: Split) -> tuple[list[str], tuple[int, ...]]:
        prompts = [item.prompt for item in items[split]]
        if chat:
            prompts = chat_prompts(subject.tokenizer, prompts, f"{name} {split}")
        return subject.written(prompts, decoding, f"{name} {split}")

    def score(subject: Subject, split: Split) -> Scores:
        texts, kept = written(subject, split)
        found = [answers.extracted(text, pattern, take) for text in texts]
        _say(subject, texts, found)
        rights = [items[split][at].rights for at in kept]
        scores = [row.counts(answer, right) for answer, right in zip(found, rights, strict=True)]
        return np.array(scores, dtype=np.float64)

    def show(subject: Subject, split: Split, places: Sequence[int]) -> list[Shown]:
        texts, kept = written(subject, split)
        chosen = [(items[split][kept[place]], texts[place]) for place in places]
        return [Shown(item.prompt, "; ".join(map(_expected, item.rights)), text) for item, text in chosen]

    for split, questions in items.items():
        if not questions:
            raise DataError(f"ability {name!r} has no {split} items")
    shown = show if row.statistic == "mean" else None  # an item alone has no corpus score, and is neither lost nor won
    return Measure(
        "abilities", name, row.statistic, score, chance=chance, unit=row.unit, show=shown, items=counted(items)
    )


def _expected(right: Any) -> str:
    return right if isinstance(right, str) else ", ".join([right["id"], *map(str, right["kwargs"].values())])


def _say(subject: Subject, texts: Sequence[str], found: Sequence[str]) -> None:
    empty = sum(not text.strip() for text in texts)
    nothing = sum(not answer for answer in found) - empty
    if empty:
        subject.note(f"empty answers: {empty} of {len(texts)}, scored 0")
    if nothing:
        subject.note(f"no answer found in the text: {nothing} of {len(texts)}, scored 0")
