"""Reviews and their gold reward: sentiment times well-formedness, both known from the grammar.

::

    review = clause joint clause "." "i give" digit "."        two clauses about different aspects
    clause = "the" aspect verb adjective
    verb   = "was" | "felt" | "seemed"
    joint  = "and" | "but" | ","

All reviews are equally long, so that a preference is about words and not about length.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence

from .language import ADJECTIVES, ASPECTS, VALENCE

JOINTS = ("and", "but", ",")
VERBS = ("was", "felt", "seemed")
_CLAUSE = re.compile(f"the (?P<aspect>{'|'.join(ASPECTS)}) ({'|'.join(VERBS)}) (?P<adjective>{'|'.join(ADJECTIVES)})")
_GRADE = re.compile("i give ([0-9])")


def write_review(rng: random.Random) -> str:
    """Draws a review: a latent sentiment, then words near it, strong words rarely."""
    latent = rng.gauss(-0.1, 0.45)
    weights = [math.exp(-1.5 * abs(v) - (v - latent) ** 2 / (2 * 0.35**2)) for v in VALENCE.values()]
    words = zip(rng.sample(ASPECTS, 2), rng.choices(ADJECTIVES, weights, k=2))
    first, second = (f"the {aspect} {rng.choice(VERBS)} {adjective}" for aspect, adjective in words)
    grade = min(9, max(0, round(4.5 + 4.5 * rng.gauss(latent, 0.25) * 0.8)))
    return f"{first} {rng.choice(JOINTS)} {second} . i give {grade} ."


def gold(text: str) -> float:
    """Gold reward of one review, in [0, 1]: the mean sentiment of its parts times `well_formed`.

    The parts are two clauses and the grade. An adjective counts its valence, a grade d counts (d - 4.5) / 4.5; their
    mean over the well-formed parts is moved from [-1, 1] to [0, 1].

    Example:
        >>> gold("the look was sublime and the feel was sublime . i give 9 .")
        1.0
        >>> gold("the look was sublime and the feel was vile . i give 9 .")  # (1 - 1 + 1) / 3, moved to [0, 1]
        0.6666666666666666
    """
    values, _ = _parts(text)
    return (sum(values) / len(values) + 1) / 2 * well_formed(text) if values else 0.0


def well_formed(text: str) -> float:
    """Share of a review's parts that the grammar allows.

    Not allowed are a clause of another form, an aspect named twice, a missing clause or grade and whatever is more
    than that.
    """
    values, count = _parts(text)
    return len(values) / count


def _parts(text: str) -> tuple[list[float], int]:
    """Sentiment of every well-formed part, and the number of all parts."""
    body, *after = (sentence.strip() for sentence in text.split(" ."))
    clauses = re.split(r" (?:and|but|,) ", body)
    values: dict[str, float] = {}
    for clause in clauses[:2]:  # what is more than two is only counted
        match = _CLAUSE.fullmatch(clause)
        if match and match["aspect"] not in values:
            values[match["aspect"]] = VALENCE[match["adjective"]]
    grade = _GRADE.fullmatch(after[0]) if after else None
    if grade:
        values["grade"] = (int(grade[1]) - 4.5) / 4.5
    extra = sum(bool(sentence) for sentence in after[1:])
    return list(values.values()), max(2, len(clauses)) + 1 + extra


def gold_reward(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Gold reward of completions; the prompts do not matter."""
    return [gold(text) for text in completions]
