"""What the best of n responses measures, read off N responses a prompt that were drawn once for every n."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..decoding import best_of_kl, best_of_shares
from . import statistics
from .reading import Reading
from .suite import Group, Measure, Scores, Suite

PROXY, REVERSE_KL, TOKENS = "reward.proxy", "drift.reverse_kl", "tokens"
NO_TAX = (
    "0 by construction: best-of-n chooses among responses to the prompts of alignment; a question has one right "
    "answer, and initial itself gives it"
)
BY_FORMULA = (
    "best-of-n by the formula, log n − (n − 1)/n nats a response over the mean length: an upper bound, exact where no "
    "responses tie"
)
NOT_DRAWN = "best-of-n's responses are drawn after the prompts of alignment, not after the general ones"
NOT_KNOWN = "best-of-n has no closed form for the probability of a given text"


@dataclass(frozen=True)
class Drawn:
    """N responses to every prompt of a split.

    Attributes:
        numbers: Key of a measure, or ``tokens`` -> ``(items, N)``.
        texts: The responses to the first prompts, N each.
    """

    numbers: Mapping[str, Scores]
    texts: Sequence[Sequence[str]]


def numbered(suite: Suite) -> list[Measure]:
    """The measures that are means of one number a response."""
    return [one for one in suite.measures if one.each is not None]


def read_best_of(suite: Suite, drawn: Drawn, n: int, initial: Mapping[str, Scores], prompts: Sequence[str]) -> Reading:
    """Reads the measures of a suite for the response of most proxy reward among n.

    Means over responses are estimated by `best_of_shares`, a number an item. Abilities are those of `initial`, reverse
    KL is the formula's, and what would take the probability of a text is undefined; `Reading.why` says all of it.

    Args:
        suite: What is measured.
        drawn: N responses a prompt, n or more.
        n: Of how many the best is shipped.
        initial: Scores of the initial model on the split, by key.
        prompts: The split's.
    """
    shares = best_of_shares(drawn.numbers[PROXY], n)
    values: dict[Group, dict[str, float]] = {"reward": {}, "abilities": {}, "drift": {}}
    scores: dict[str, Scores] = {}
    why = {"abilities": NO_TAX}
    for one in suite.measures:
        if one.each is not None:
            scores[one.key] = (shares * drawn.numbers[one.key]).sum(axis=1, keepdims=True)
        elif one.group == "abilities":
            scores[one.key] = initial[one.key]
        elif one.key == REVERSE_KL:
            tokens = (shares * drawn.numbers[TOKENS]).sum(axis=1)
            scores[one.key] = np.stack([np.full(len(tokens), best_of_kl(n)), tokens], axis=1)
            why[one.key] = BY_FORMULA
        else:
            values[one.group][one.name] = math.nan
            why[one.key] = NOT_KNOWN if one.prompts == "prompts" else NOT_DRAWN
            continue
        values[one.group][one.name] = statistics.value(one.statistic, scores[one.key])
    return Reading(values, scores, _texts(drawn, n, prompts), why)


def _texts(drawn: Drawn, n: int, prompts: Sequence[str]) -> list[dict[str, str | float | None]]:
    """The best of the first n responses to the first prompts."""
    found: list[dict[str, str | float | None]] = []
    for row, texts in enumerate(drawn.texts):
        best = int(drawn.numbers[PROXY][row, :n].argmax())
        rewards = {name: _number(drawn, f"reward.{name}", row, best) for name in ("proxy", "gold")}
        found.append({"prompt": prompts[row], "completion": texts[best], **rewards})
    return found


def _number(drawn: Drawn, key: str, row: int, best: int) -> float | None:
    return float(drawn.numbers[key][row, best]) if key in drawn.numbers else None
