"""Rewards on texts: any function of prompts and completions, checked before it is believed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from weakref import WeakKeyDictionary

import numpy as np

from ..errors import DataError, UntaxedError, short
from .journal import NOTHING_KEPT, Journal
from .reward_models import RewardModel
from .sampling import Completions
from .subject import Subject
from .suite import Measure, Reward, Scores, Split

REMEDY = "; return one finite number for every completion"


class Rated:
    """The rewards of models' own samples after the suite's prompts, asked for once a model and split.

    Args:
        name: In results and errors.
        fn: Maps prompts and completions, as texts, to one number each.
    """

    def __init__(self, name: str, fn: Reward) -> None:
        self.name, self.fn = name, fn
        self._known: WeakKeyDictionary[Subject, dict[Split, np.ndarray]] = WeakKeyDictionary()

    def __call__(self, subject: Subject, split: Split) -> np.ndarray:
        """``(items,)`` rewards."""
        known = self._known.setdefault(subject, {})
        if split not in known:
            drawn = subject.completions(split)
            known[split] = self.of(drawn.prompts, drawn.texts, subject.journal)
        return known[split]

    def of(self, prompts: Sequence[str], completions: Sequence[str], journal: Journal = NOTHING_KEPT) -> np.ndarray:
        """``(items,)`` rewards of texts."""
        fn = partial(self.fn, journal=journal) if isinstance(self.fn, RewardModel) else self.fn
        return rewards_of(self.name, fn, prompts, completions)


def reward(name: str, fn: Reward) -> Measure:
    """Mean reward of the model's own samples after the suite's prompts.

    Args:
        name: ``proxy`` for what alignment maximises, ``gold`` where the truth is known, or any other.
        fn: Maps prompts and completions, as texts, to one number each.
    Raises:
        DataError: When measured: `fn` returned the wrong count, or a value that is not a finite number.
    """
    return mean_reward(Rated(name, fn))


def mean_reward(rated: Rated) -> Measure:
    """As `reward`, of rewards that other measures share."""

    def each(drawn: Completions) -> Scores:
        return rated.of(drawn.prompts, drawn.texts)

    def score(subject: Subject, split: Split) -> Scores:
        return rated(subject, split)[:, None]

    return Measure("reward", rated.name, "mean", score, unit="reward", each=each)


def rewards_of(name: str, fn: Reward, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
    """Calls a reward and checks what it returns, ``(items,)`` float64."""
    texts, expected = tuple(completions), len(prompts)  # before anybody else's code has the lists in hand
    try:
        returned = fn(prompts, completions)
        values = list(returned) if isinstance(returned, Iterable) else None
    except (UntaxedError, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # the user's own code: whatever it raises, the line names the reward
        raise DataError(f"reward {name!r} raised {type(error).__name__}: {error}") from error
    if values is None:
        raise DataError(f"reward {name!r}: expected {expected} numbers, got {short(returned)}{REMEDY}")
    if len(values) != expected:
        raise DataError(f"reward {name!r} returned {len(values)} values for {expected} completions{REMEDY}")
    return np.array([_number(name, row, value, texts[row]) for row, value in enumerate(values)])


def _number(name: str, row: int, value: object, completion: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except Exception:  # of a number too large, a text, a tensor of several, an object of the user's own
        raise DataError(f"reward {name!r}, row {row}: expected a number, got {short(value)}{REMEDY}") from None
    if not math.isfinite(number):
        raise DataError(
            f"reward {name!r}, row {row}: expected a finite number, got {number} for {short(completion, 80)}{REMEDY}"
        )
    return number
