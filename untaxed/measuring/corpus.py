"""Corpus BLEU and chrF from counts of every item, so that any resample of the items has its score.

An item's counts are those of sacrebleu; the formulas here are its formulas, over arrays: (..., k) -> (...).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import require

Array = NDArray[np.float64]

ORDER = 4  # longest n-gram of words, in BLEU
CHARACTERS = 6  # longest n-gram of characters, in chrF
BETA = 2  # how much more recall counts than precision, in chrF


@cache
def _sentence_bleu() -> Any:
    return require("sacrebleu", extra="eval").BLEU(effective_order=True)  # only says not to warn: counts are the same


def bleu_counts(answer: str, rights: Sequence[str]) -> list[float]:
    """Length, nearest length of a right translation, matched n-grams, n-grams: ``2 + 2·4`` numbers."""
    found = _sentence_bleu().sentence_score(answer, list(rights))
    return [found.sys_len, found.ref_len, *found.counts, *found.totals]


def bleu(average: Array) -> Array:
    r"""Corpus BLEU from 0 to 100, from averages of `bleu_counts` and, last, the number of items.

    .. math:: 100 \cdot \min(1, e^{1 - r/c}) \prod_{n=1}^4 p_n^{1/4}

    An order of which nothing matched has :math:`p_n = 1 / (2^k N_n)`, N_n n-grams in all, for the k-th such order. That
    needs counts, not averages.

    Source: Papineni et al. 2002; Post 2018 (sacrebleu's defaults: 13a, exponential smoothing), arXiv:1804.08771.
    """
    items = average[..., -1]
    length, right = average[..., 0], average[..., 1]
    counts, every = average[..., 2 : 2 + ORDER], average[..., 2 + ORDER : 2 + 2 * ORDER]
    with np.errstate(divide="ignore", invalid="ignore"):
        absent = counts == 0
        smoothed = 1 / (2.0 ** absent.cumsum(-1) * every * items[..., None])
        precisions = np.where(absent, smoothed, counts / every)
        penalty = np.exp(np.minimum(0, 1 - right / length))
        score = 100 * penalty * np.exp(np.log(precisions).mean(-1))
    return np.where((counts.sum(-1) == 0) | (every == 0).any(-1), 0.0, score)


def chrf_counts(answer: str, rights: Sequence[str]) -> list[float]:
    """For each length of 1 to 6 characters: n-grams, those of the right translation, matched ones: ``3·6`` numbers.

    Of several right translations the one with the best sentence score.
    """
    written = _characters(answer)
    pairs = [zip(written, _characters(right)) for right in rights]
    counts = [[float(one) for pair in orders for one in _matches(*pair)] for orders in pairs]
    return max(counts, key=lambda row: float(chrf(np.array(row, dtype=np.float64))))


def chrf(average: Array) -> Array:
    r"""Corpus chrF2 from 0 to 100, from averages of `chrf_counts`.

    .. math:: 100 \cdot \frac{(1 + \beta^2) P R}{\beta^2 P + R}

    P and R are means over the lengths of n-gram that both sides have.

    Source: Popović 2015; sacrebleu's defaults (order 6, no word n-grams, white space left out).
    """
    written, right, same = average[..., 0::3], average[..., 1::3], average[..., 2::3]
    both = (written > 0) & (right > 0)
    orders = np.maximum(both.sum(-1), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(both, same / written, 0.0).sum(-1) / orders
        recall = np.where(both, same / right, 0.0).sum(-1) / orders
        score = 100 * (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)
    return np.where(precision + recall > 0, score, 0.0)


def _characters(text: str) -> list[Counter[str]]:
    text = "".join(text.split())
    return [Counter(text[at : at + n] for at in range(len(text) - n + 1)) for n in range(1, CHARACTERS + 1)]


def _matches(written: Counter[str], right: Counter[str]) -> tuple[int, int, int]:
    # what is longer than the right translation has no counterpart to be compared with, and counts not at all
    return written.total() if right else 0, right.total(), (written & right).total()
