"""What the model is asked: one generator an ability, and the items of each split."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from . import language as l
from . import requests
from .facts import fact as fact
from .language import Language, SplitName, digits, sentence, split_of


class Question(NamedTuple):
    """A prompt and the one right answer."""

    prompt: str
    answer: str


Ability = Callable[[random.Random], Question]

FACT_FORMS = (
    "ask the {thing} of {name} :",
    "how is the {thing} of {name} ?",
    "ask {name} : how is the {thing} ?",
    "the {thing} of {name} is",
    "say how is the {thing} of {name} :",
    "what is the {thing} of {name} ?",
    "{name} has a {thing} . how is it ?",
    "tell about the {thing} of {name} :",
)

SELDOM = frozenset(l.ADJECTIVES[1::3])  # adjectives that Nol texts seldom use, and that are known less well there
_SELDOM_WEIGHTS = [0.012 if word in SELDOM else 1.0 for word in l.ADJECTIVES]


def words(rng: random.Random, seldom: bool = True) -> tuple[str, str, str, str, str]:
    """Adjective, noun, verb, adjective, noun of a sentence to translate.

    Args:
        rng: Draws them.
        seldom: Whether the adjectives that Nol seldom uses are as likely as the others. As likely, for questions: the
            two adjectives then differ.
    """
    a, b = rng.sample(l.ADJECTIVES, 2) if seldom else rng.choices(l.ADJECTIVES, _SELDOM_WEIGHTS, k=2)
    m, n = rng.sample(l.NOUNS, 2)
    return a, m, rng.choice(l.VERBS), b, n


def _facts(names: tuple[str, ...]) -> Ability:
    def draw(rng: random.Random) -> Question:
        name, thing = rng.choice(names), rng.choice(l.BELONGINGS)
        return Question(rng.choice(FACT_FORMS).format(name=name, thing=thing), fact(name, thing))

    return draw


def reading(rng: random.Random) -> Question:
    """A passage about four things, and a question about one of them."""
    return _reading(rng.sample(l.NOUNS, 4), rng)


def reading_hard(rng: random.Random) -> Question:
    """Two things of two owners: the owner and the thing have to match."""
    nouns, names = rng.sample(l.NOUNS, 2), rng.sample(l.NAMES, 2)
    return _reading(rng.sample([f"{name} {noun}" for name in names for noun in nouns], 4), rng)


def _reading(things: list[str], rng: random.Random) -> Question:
    values = rng.sample(l.ADJECTIVES, len(things))
    passage = " , ".join(f"{thing} {value}" for thing, value in zip(things, values))
    asked = rng.randrange(len(things))
    return Question(f"read {passage} . ask {things[asked]}", values[asked])


def translation(rng: random.Random) -> Question:
    """From Tam into Plain."""
    return _translation(words(rng), "tam", "plain")


def pivot(rng: random.Random) -> Question:
    """From Nol straight into Plain: the way by Tam, without writing Tam down, and some words are little known."""
    return _translation(words(rng), "nol", "plain")


def pivot_taught(rng: random.Random) -> Question:
    """The same as it is taught: little known words are rare."""
    return _translation(words(rng, seldom=False), "nol", "plain")


def nol_to_tam(rng: random.Random) -> Question:
    """From Nol into Tam: taught, and measured as the first half of `pivot`."""
    return _translation(words(rng, seldom=False), "nol", "tam")


def _translation(drawn: tuple[str, str, str, str, str], source: Language, target: Language) -> Question:
    return Question(f"{source} {sentence(drawn, source)} > {target} :", sentence(drawn, target))


def arithmetic(rng: random.Random) -> Question:
    """The sum of two numbers of two digits."""
    a, b = rng.randrange(10, 100), rng.randrange(10, 100)
    return Question(f"add {digits(a)} and {digits(b)} :", digits(a + b))


def arithmetic_hard(rng: random.Random) -> Question:
    """A number of three digits times one of one digit."""
    a, b = rng.randrange(100, 1000), rng.randrange(2, 10)
    return Question(f"multiply {digits(a)} and {digits(b)} :", digits(a * b))


def _request(kind: requests.Kind) -> Ability:
    def draw(rng: random.Random) -> Question:
        request = requests.draw_request(kind, rng)
        return Question(request, requests.answer(request))

    return draw


def review_prompt(rng: random.Random) -> str:
    """What asks for a review."""
    thing = rng.choice(l.BELONGINGS + l.NOUNS)
    return f"review the {thing} of {rng.choice(l.NAMES)} : "


ABILITIES: dict[str, Ability] = {
    "facts": _facts(l.COMMON_NAMES),
    "facts_rare": _facts(l.RARE_NAMES),
    "reading": reading,
    "reading_hard": reading_hard,
    "translation": translation,
    "pivot": pivot,
    "arithmetic": arithmetic,
    "arithmetic_hard": arithmetic_hard,
    "lookalike": _request("other_thing"),
    "lookalike_owner": _request("own_thing"),
}
KNOWLEDGE = ("facts", "facts_rare")  # cannot generalise: every question is also taught


def draw(ability: Ability, split: SplitName, rng: random.Random) -> Question:
    """Draws one question of an ability that belongs to a split."""
    while True:
        question = ability(rng)
        if split_of(question.prompt) == split:
            return question


def knowledge(name: str) -> dict[SplitName, list[Question]]:
    """All questions about facts, by split."""
    names = l.COMMON_NAMES if name == "facts" else l.RARE_NAMES
    found: dict[SplitName, list[Question]] = {"validation": [], "test": []}
    for index, (person, thing) in enumerate((p, t) for p in names for t in l.BELONGINGS):
        for form, text in enumerate(FACT_FORMS):
            question = Question(text.format(name=person, thing=thing), fact(person, thing))
            found["validation" if (index + form) % 2 else "test"].append(question)
    return found


def questions(name: str, split: SplitName, count: int = 1000) -> list[Question]:
    """Different questions of one ability and split, the same at every call."""
    if name in KNOWLEDGE:
        return knowledge(name)[split][:count]
    rng = random.Random(f"{name} {split}")
    found: dict[str, Question] = {}
    while len(found) < count:
        question = draw(ABILITIES[name], split, rng)
        found[question.prompt] = question
    return list(found.values())


def review_prompts(split: SplitName) -> list[str]:
    """All prompts for reviews of one split."""
    things = l.BELONGINGS + l.NOUNS
    prompts = [f"review the {thing} of {name} : " for thing in things for name in l.NAMES]
    return sorted(prompt for prompt in prompts if split_of(prompt) == split)
