"""Rewards on texts: any function of prompts and completions, checked before it is believed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..errors import DataError, UntaxedError
from .subject import Subject
from .suite import Measure, Reward, Scores, Split


def reward(name: str, fn: Reward) -> Measure:
    """Mean reward of the model's own samples after the suite's prompts.

    Args:
        name: ``proxy`` for what alignment maximises, ``gold`` where the truth is known.
        fn: Maps prompts and completions, as texts, to one number each.
    Raises:
        DataError: When measured: `fn` returned the wrong count, or a value that is not a finite number.
    """

    def score(subject: Subject, split: Split) -> Scores:
        drawn = subject.completions(split)
        return rewards_of(name, fn, drawn.prompts, drawn.texts)[:, None]

    return Measure("reward", name, "mean", score, unit="reward")


def rewards_of(name: str, fn: Reward, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
    """Calls a reward and checks what it returns, ``(items,)`` float64."""
    try:
        returned = fn(prompts, completions)
    except (UntaxedError, MemoryError):
        raise
    except Exception as error:  # the user's own code: whatever it raises, the line names the reward
        raise DataError(f"reward {name!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(returned, Iterable):
        raise DataError(f"reward {name!r}: expected {len(prompts)} numbers, got {returned!r}")
    values = list(returned)
    if len(values) != len(prompts):
        raise DataError(f"reward {name!r} returned {len(values)} values for {len(prompts)} completions")
    checked = np.empty(len(values))
    for row, value in enumerate(values):
        try:
            checked[row] = float(value)
        except (TypeError, ValueError):
            raise DataError(f"reward {name!r}, row {row}: expected a number, got {value!r}") from None
        if not np.isfinite(checked[row]):
            raise DataError(f"reward {name!r}, row {row}: expected a finite number, got {value!r}")
    return checked
