"""Comparing a written answer with the right ones: taking it out of the text, and its score from 0 to 1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MARKS = re.compile(f"[{re.escape(string.punctuation)}]")
_NUMBER = re.compile(r"-?(?:\d[\d,]*)?\.?\d+")


def extracted(text: str, pattern: re.Pattern[str] | None, take: str = "last") -> str:
    """The answer in a text: what a pattern finds, first or last; its first group that took part, where it has groups.

    Args:
        text: What the model wrote.
        pattern: None takes the whole text.
        take: ``first`` or ``last`` of several places.
    Returns:
        The answer without white space around it; empty where the pattern finds nothing.
    Example:
        >>> extracted("2 + 2 is 4. So 4 eggs.", re.compile(r"-?[0-9]+"))
        '4'
    """
    if pattern is None:
        return text.strip()
    found = list(pattern.finditer(text))
    if not found:
        return ""
    match = found[0] if take == "first" else found[-1]
    groups = [group for group in match.groups() if group is not None]
    return (groups[0] if groups else match[0]).strip()


def number_of(text: str) -> float | None:
    """The number that a text is or, among other words, holds last; None where there is none.

    Example:
        >>> number_of("$1,250.00."), number_of("half")
        (1250.0, None)
    """
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def match(answer: str, rights: Sequence[str]) -> float:
    """1 where the answer is one of the right ones, letter by letter."""
    return float(answer.strip() in [right.strip() for right in rights])


def number(answer: str, rights: Sequence[str]) -> float:
    """1 where the answer is the same number as one of the right ones, however it is written."""
    found = number_of(answer)
    return float(found is not None and found in [number_of(right) for right in rights])


def normalised(text: str) -> str:
    """Lower case, without punctuation, English articles and doubled white space.

    Example:
        >>> normalised("The  Cat's hat.")
        'cats hat'
    """
    return " ".join(_ARTICLES.sub(" ", _MARKS.sub("", text.lower())).split())


def exact(answer: str, rights: Sequence[str]) -> float:
    """1 where the normalised answer is one of the normalised right ones.

    Source: Rajpurkar et al. 2016 (SQuAD), arXiv:1606.05250.
    """
    return float(normalised(answer) in [normalised(right) for right in rights])


def f1(answer: str, rights: Sequence[str]) -> float:
    """Overlap of normalised words with the right answer that is nearest: harmonic mean of precision and recall.

    Source: Rajpurkar et al. 2016 (SQuAD), arXiv:1606.05250.
    """
    return max(_f1(normalised(answer).split(), normalised(right).split()) for right in rights)


def drop_exact(answer: str, rights: Sequence[str]) -> float:
    """1 where the answer is right after DROP's normalisation, in which 3 and 3.0 are one number.

    Source: Dua et al. 2019 (DROP), arXiv:1903.00161.
    """
    return float(_drop_words(answer) in [_drop_words(right) for right in rights])


def drop_f1(answer: str, rights: Sequence[str]) -> float:
    """Overlap of words with the right answer that is nearest; 0 where the right one holds numbers and none agrees.

    Source: Dua et al. 2019 (DROP), arXiv:1903.00161.
    Differs: an answer of several spans is one span here; right answers that are several spans count one by one.
    """
    words = _drop_words(answer)
    return max(_drop_f1(words, _drop_words(right)) for right in rights)


def _f1(answer: Sequence[str], right: Sequence[str]) -> float:
    same = sum((Counter(answer) & Counter(right)).values())
    return 2 * same / (len(answer) + len(right)) if same else 0.0


def _drop_f1(answer: Sequence[str], right: Sequence[str]) -> float:
    answer, right = list(dict.fromkeys(answer)), list(dict.fromkeys(right))  # sets of words, in DROP
    numbers = {word for word in right if _float(word) is not None}
    return 0.0 if numbers and not numbers & set(answer) else _f1(answer, right)


def _drop_words(text: str) -> list[str]:
    """Words at white space and hyphens, normalised; numbers keep their point and are written as floats."""
    words = [_drop_word(word) for word in re.split(r"[ \n\t-]+", text.lower())]
    return [word for word in words if word]


def _drop_word(word: str) -> str:
    value = _float(word.strip(string.punctuation.replace("-", "").replace(".", "")).rstrip("."))
    return str(value) if value is not None else normalised(word)


def _float(word: str) -> float | None:
    try:
        return float(word.replace(",", "")) if any(mark.isdigit() for mark in word) else None
    except ValueError:
        return None
