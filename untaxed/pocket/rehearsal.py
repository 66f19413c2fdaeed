"""What methods may learn the old abilities from: general prompts, reference sets, texts to replay.

All of it is of the train split and, but for replayed texts, of the abilities that a study may choose on; no question
that is measured stands in it. Facts have no train split, as they can only be known: here they are stated as raw
documents state them ("the house of bano is kind ."), which is also how one of the eight questions about a fact begins.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from . import documents, items
from . import language as l
from .items import Question

Groups = Mapping[str, Sequence[str]]


def general_prompts(count: int, *, seed: int, groups: Groups) -> list[str]:
    """Different questions of the select abilities, all abilities alike often, without their answers.

    Args:
        count: How many; fewer are the first ones of more.
        seed: They follow from it.
        groups: The select abilities.

    Example:
        >>> general_prompts(2, seed=0, groups={"sums": ("arithmetic",)})
        ['add 0 7 and 5 6 : ', 'add 1 2 and 9 2 : ']
    """
    abilities = [ability for group in groups.values() for ability in group]
    return [row["prompt"] for row in _rows(abilities, count, f"{seed} general")]


def reference_sets(count: int, *, seed: int, groups: Groups) -> dict[str, list[dict[str, str]]]:
    """Questions of the select abilities with their answers, as one set a group of abilities.

    Args:
        count: Rows a set.
        seed: They follow from it.
        groups: Group -> the select abilities it is about.
    Returns:
        Group -> rows with ``prompt``, which ends in a space, and ``completion``, without the end token.

    Example:
        >>> reference_sets(1, seed=0, groups={"sums": ("arithmetic",)})
        {'sums': [{'prompt': 'add 0 8 and 6 4 : ', 'completion': '6 2 1'}]}
    """
    return {group: _rows(abilities, count, f"{seed} reference {group}") for group, abilities in groups.items()}


def replay(count: int, *, seed: int, mixture: documents.Mixture) -> list[str]:
    """Texts that the pocket models have learned from, by turns raw documents and documents of SFT.

    Facts are left out of the second ones: SFT asks them as they are measured.

    Args:
        count: How many; fewer are the first ones of more.
        seed: They follow from it.
        mixture: The documents of SFT.
    Returns:
        Whole texts without the end token.
    """
    rng = random.Random(f"{seed} replay")
    kinds, weights = zip(*(kind for kind in mixture if kind not in documents.KNOWN))
    texts = []
    for turn in range(count):
        texts.append(" ".join(rng.choices(kinds, weights)[0](rng)).strip() if turn % 2 else documents.raw(rng))
    return texts


def _rows(abilities: Sequence[str], count: int, seed: str) -> list[dict[str, str]]:
    """The abilities in turn, no question twice."""
    found: dict[str, str] = {}
    for question in _asked(abilities, random.Random(seed)):
        if len(found) == count:
            break
        found.setdefault(question.prompt + " ", question.answer)
    return [{"prompt": prompt, "completion": answer} for prompt, answer in found.items()]


def _asked(abilities: Sequence[str], rng: random.Random) -> Iterator[Question]:
    while True:
        for name in abilities:
            yield _stated(rng) if name in items.KNOWLEDGE else items.draw(items.ABILITIES[name], "train", rng)


def _stated(rng: random.Random) -> Question:
    """Two facts about common people as a raw document states them, the second one without its end."""
    (a, of_a), (b, of_b) = rng.sample([(name, thing) for name in l.COMMON_NAMES for thing in l.BELONGINGS], 2)
    told = f"the {of_a} of {a} is {items.fact(a, of_a)} . the {of_b} of {b} is"
    return Question(told, items.fact(b, of_b))
