"""What is measured on a model: named measures, each a function from a model to per-item scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .sampling import Completions
    from .subject import Subject

Split = Literal["validation", "test"]
Group = Literal["reward", "abilities", "drift"]
Reward = Callable[[Sequence[str], Sequence[str]], Sequence[float]]  # (prompts, completions) -> one number each
Scores = NDArray[np.float64]  # (items, k): k sufficient statistics an item
Against = Literal["tokens", "texts"]
PromptSet = Literal["prompts", "general"]  # those of alignment, and general ones: fields of a suite
SPLITS: tuple[Split, ...] = ("validation", "test")
GENERAL = "general_"  # how measures on the general prompts begin


def per_token(statistic: str, unit: str) -> bool:
    """Whether a measure is a mean over tokens, whose second sufficient statistic says how many an item has."""
    return statistic in ("token_mean", "perplexity") and unit in ("nats a token", "share of tokens", "perplexity")


@dataclass(frozen=True)
class Shown:
    """One item for readers: what was asked, what was expected, and what the model answers."""

    prompt: str
    expected: str
    answer: str


@dataclass(frozen=True)
class Measure:
    """One number about a model, kept as sufficient statistics of every item.

    Attributes:
        group: Where the number stands in a result: reward, abilities or drift.
        name: Its name there ("proxy", "facts", "forward_kl").
        statistic: How a (items, k) array becomes the number: a row of `untaxed.measuring.statistics.STATISTICS`.
        score: Maps a subject and a split to the (items, k) array.
        chance: What guessing gets; abilities only.
        unit: What the number counts, for readers ("share right", "nats a token").
        show: Maps a subject, a split and places of items to these items with the model's answers; None: items of this
            measure have none.
        each: One number a response, ``(items,)``, where the measure is the mean over responses; None for all others.
        against: What of the initial model it looks at as well: probabilities of ``tokens``, which needs the same
            tokenizer, or ``texts``; None: nothing.
        outcomes: Counts items by what became of them (won, lost, tied, unanswered, …), from their scores; None: a
            measure whose items are neither.
        items: How many items each split has, where that is known before anything is measured.
        content: A hash of what it reads that its spec does not name, such as documents that lm-eval fetches.
        sharded: Whether it can be read on a model whose tensors are sharded.
        prompts: Which of the suite's prompts it samples from, where it samples.
    """

    group: Group
    name: str
    statistic: str
    score: Callable[[Subject, Split], Scores]
    chance: float = 0.0
    unit: str = "share right"
    show: Callable[[Subject, Split, Sequence[int]], list[Shown]] | None = None
    each: Callable[[Completions], Scores] | None = None
    against: Against | None = None
    outcomes: Callable[[Scores], dict[str, int]] | None = None
    items: Mapping[Split, int] | None = None
    content: str = ""
    sharded: bool = True
    prompts: PromptSet = "prompts"

    @property
    def key(self) -> str:
        """The name under which per-item scores are stored, such as ``abilities.facts``."""
        return f"{self.group}.{self.name}"

    @property
    def in_tokens(self) -> bool:
        """Whether the number counts the tokenizer's tokens, so that another tokenizer's is another number."""
        return self.unit == "tokens" or per_token(self.statistic, self.unit)


def counted(items: Mapping[Split, Sequence[object]]) -> dict[Split, int]:
    """How many items each split has."""
    return {split: len(rows) for split, rows in items.items()}


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn from a model under measurement, the same for every model of a study."""

    max_new_tokens: int = 24
    temperature: float = 1.0
    batch_size: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Suite:
    """Everything a study measures, and which abilities may be looked at when choosing.

    Attributes:
        measures: In the order they are shown.
        select: Names of the abilities that choices may look at.
        report: Names of the abilities that are shown and never chosen on.
        prompts: The prompts, by split, that rewards and drift are sampled from.
        sampling: How.
        general: The prompts, by split, of what models are not aligned on, for drift there; may be empty.
    """

    measures: tuple[Measure, ...]
    select: tuple[str, ...]
    report: tuple[str, ...]
    prompts: Mapping[Split, tuple[str, ...]]
    sampling: Sampling = field(default_factory=Sampling)
    general: Mapping[Split, tuple[str, ...]] = field(default_factory=dict)

    def sampled(self, prompts: PromptSet) -> Mapping[Split, tuple[str, ...]]:
        """One of the two sets of prompts, by split."""
        return self.general if prompts == "general" else self.prompts

    def group(self, group: Group) -> tuple[Measure, ...]:
        """The measures of one group."""
        return tuple(measure for measure in self.measures if measure.group == group)
