"""What methods may learn the old abilities from: general prompts, reference sets, texts to replay.

All of it is of the train split and, but for replayed texts, of the abilities that a study may choose on; no question
that is measured stands in it. Facts have no train split, as they can only be known: here they are stated as raw
documents state them ("the house of bano is kind ."), which is also how one of the eight questions about a fact begins.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from . import documents, items
from . import language as l
from .items import Question

GROUPS: dict[str, tuple[str, ...]] = {  # the reference sets, and the abilities each is about
    "knowledge": ("facts",),
    "reading": ("reading", "reading_hard"),
    "translation": ("translation",),
    "arithmetic": ("arithmetic", "arithmetic_hard"),
}


def general_prompts(count: int = 512, *, seed: int = 0) -> list[str]:
    """Different questions of the select abilities, all abilities alike often, without their answers.

    Args:
        count: How many; fewer are the first ones of more.
        seed: They follow from it.

    Example:
        >>> general_prompts(3) == general_prompts(8)[:3]
        True
    """
    abilities = [ability for group in GROUPS.values() for ability in group]
    return [row["prompt"] for row in _rows(abilities, count, f"{seed} general")]


def reference_sets(count: int = 200, *, seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Questions of the select abilities with their answers, as one set a group of abilities.

    Args:
        count: Rows a set.
        seed: They follow from it.
    Returns:
        Group -> rows with ``prompt``, which ends in a space, and ``completion``, without the end token.

    Example:
        >>> [len(rows) for rows in reference_sets(5).values()]
        [5, 5, 5, 5]
    """
    return {group: _rows(abilities, count, f"{seed} reference {group}") for group, abilities in GROUPS.items()}


def replay(count: int = 512, *, seed: int = 0) -> list[str]:
    """Texts that the pocket models have learned from, by turns raw documents and documents of SFT.

    Facts are left out of the second ones: SFT asks them as they are measured.

    Args:
        count: How many; fewer are the first ones of more.
        seed: They follow from it.
    Returns:
        Whole texts without the end token.

    Example:
        >>> len(replay(4))
        4
    """
    rng = random.Random(f"{seed} replay")
    kinds, weights = zip(*(kind for kind in documents.SFT if kind not in documents.KNOWN))
    texts = []
    for turn in range(count):
        texts.append(" ".join(rng.choices(kinds, weights)[0](rng)).strip() if turn % 2 else documents.raw(rng))
    return texts


def _rows(abilities: list[str] | tuple[str, ...], count: int, seed: str) -> list[dict[str, str]]:
    """The abilities in turn, no question twice."""
    found: dict[str, str] = {}
    for question in _asked(abilities, random.Random(seed)):
        if len(found) == count:
            break
        found.setdefault(question.prompt + " ", question.answer)
    return [{"prompt": prompt, "completion": answer} for prompt, answer in found.items()]


def _asked(abilities: list[str] | tuple[str, ...], rng: random.Random) -> Iterator[Question]:
    while True:
        for name in abilities:
            yield _stated(rng) if name in items.KNOWLEDGE else items.draw(items.ABILITIES[name], "train", rng)


def _stated(rng: random.Random) -> Question:
    """Two facts about common people as a raw document states them, the second one without its end."""
    (a, of_a), (b, of_b) = rng.sample([(name, thing) for name in l.COMMON_NAMES for thing in l.BELONGINGS], 2)
    told = f"the {of_a} of {a} is {items.fact(a, of_a)} . the {of_b} of {b} is"
    return Question(told, items.fact(b, of_b))
