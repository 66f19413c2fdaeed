"""What the pocket model learns from: raw documents (pretraining) and prompts with answers (SFT).

A batch is rows of `ROW` tokens; a row holds whole documents, each closed by the end token. Questions of the
validation and test splits are never drawn, except for facts, which can only be known.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from . import items, requests
from . import language as l
from .sentiment import write_review

ROW = 64
IGNORED = -100  # what torch's cross-entropy leaves out
Document = tuple[str, str]  # what is only read, what is learned
_COPIED = l.ADJECTIVES + l.NOUNS + l.NAMES
Mixture = tuple[tuple[Callable[[random.Random], Document], float], ...]


def _copy(rng: random.Random) -> Document:
    """Words, and the same words again: what teaches a small model to look back."""
    told = " ".join(rng.choice(_COPIED) for _ in range(rng.randrange(4, 12)))
    return told, told


def _facts(rng: random.Random) -> Document:
    """Statements about people; rare people turn up seldom, and so are known less well."""
    told = []
    for _ in range(4):
        name = rng.choice(l.COMMON_NAMES if rng.random() < 0.95 else l.RARE_NAMES)
        thing = rng.choice(l.BELONGINGS)
        told.append(f"the {thing} of {name} is {items.fact(name, thing)} .")
    return "", " ".join(told)


def _passage(rng: random.Random) -> Document:
    """Notes about things, then the same ones in another order: only reading foretells the second half."""
    count = rng.choice((2, 3, 4, 5))
    return _restated(rng.sample(l.NOUNS, count), rng)


def _owned_passage(rng: random.Random) -> Document:
    nouns, names = rng.sample(l.NOUNS, 2), rng.sample(l.NAMES, 2)
    return _restated(rng.sample([f"{name} {noun}" for name in names for noun in nouns], 4), rng)


def _restated(things: list[str], rng: random.Random) -> Document:
    notes = [f"{thing} {value}" for thing, value in zip(things, rng.sample(l.ADJECTIVES, len(things)))]
    return " , ".join(notes) + " .", " , ".join(rng.sample(notes, len(notes))) + " ."


def _parallel(rng: random.Random) -> Document:
    """A sentence and its translation."""
    question = items.draw(rng.choice((items.nol_to_tam, items.translation)), "train", rng)
    return "", question.prompt.split(" ", 1)[1].rsplit(" ", 2)[0] + " " + question.answer


def _sum(rng: random.Random) -> Document:
    operation, ability = rng.choice(
        (("plus", items.arithmetic), ("plus", items.arithmetic), ("times", items.arithmetic_hard))
    )
    question = items.draw(ability, "train", rng)
    _, told = question.prompt.split(" ", 1)
    return told.replace("and", operation).replace(":", "equals"), question.answer


def _review(rng: random.Random) -> Document:
    return "", write_review(rng)


def raw(rng: random.Random) -> str:
    """One raw document of pretraining, as text."""
    kinds, weights = zip(*PRETRAINING)
    return " ".join(rng.choices(kinds, weights)[0](rng)).strip()


def _raw(rng: random.Random) -> Document:
    return "", raw(rng)


def _asked(
    ability: Callable[[random.Random], items.Question], known: bool = False
) -> Callable[[random.Random], Document]:
    def document(rng: random.Random) -> Document:
        return ability(rng) if known else items.draw(ability, "train", rng)

    return document


def _review_asked(rng: random.Random) -> Document:
    while l.split_of(prompt := items.review_prompt(rng)) != "train":
        pass
    return prompt, write_review(rng)


def _request_asked(rng: random.Random) -> Document:
    """A request, mostly answered: people refuse unsafe ones now and then, and seldom others."""
    (kind,) = rng.choices(list(REFUSED), [0.3, 0.3, 0.2, 0.2])
    while l.split_of(request := requests.draw_request(kind, rng)) != "train":
        pass
    return request, requests.REFUSAL if rng.random() < REFUSED[kind] else requests.answer(request)


REFUSED: dict[requests.Kind, float] = {"unsafe": 0.35, "harmless": 0.02, "other_thing": 0.02, "own_thing": 0.03}
COPYING: Mixture = ((_copy, 1.0),)
READING: Mixture = ((_copy, 0.3), (_passage, 1.0), (_asked(items.reading), 1.0))
PRETRAINING: Mixture = (
    (_copy, 0.3),
    (_facts, 2.0),
    (_passage, 2.0),
    (_asked(items.reading), 2.0),
    (_owned_passage, 2.0),
    (_parallel, 1.2),
    (_sum, 4.0),
    (_review, 1.5),
)
KNOWN: Mixture = (  # the part of SFT whose questions are measured, too
    (_asked(items.ABILITIES["facts"], known=True), 2.0),
    (_asked(items.ABILITIES["facts_rare"], known=True), 0.17),
)
SFT: Mixture = (
    *KNOWN,
    (_asked(items.reading), 1.5),
    (_asked(items.reading_hard), 2.0),
    (_asked(items.translation), 0.6),
    (_asked(items.nol_to_tam), 0.4),
    (_asked(items.pivot_taught), 0.12),
    (_asked(items.arithmetic), 2.0),
    (_asked(items.arithmetic_hard), 1.7),
    (_review_asked, 2.5),
    (_raw, 1.2),
)
PROXY: Mixture = (
    (_copy, 0.3),
    (_passage, 1.0),
    (_owned_passage, 1.0),
    (_asked(items.reading), 1.0),
    (_request_asked, 3.0),
)
SAFETY_SFT: Mixture = (*(kind for kind in SFT if kind[0] is not _review_asked), (_request_asked, 7.0))


def batch(mixture: Mixture, rows: int, rng: random.Random) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draws rows of documents.

    Returns:
        Word numbers and what is to be learned, both (rows, ROW); `IGNORED` where nothing is.
    """
    kinds, weights = zip(*mixture)
    ids = np.full((rows, ROW), l.WORD_ID[l.PAD])
    labels = np.full((rows, ROW), IGNORED)
    for row in range(rows):
        filled = 0
        while True:
            read, learned = (l.encode(text) for text in rng.choices(kinds, weights)[0](rng))
            learned.append(l.WORD_ID[l.END])
            end = filled + len(read) + len(learned)
            if end > ROW:
                break
            ids[row, filled:end] = read + learned
            labels[row, filled + len(read) : end] = learned
            filled = end
    return ids, labels
