"""The built-in scorers, one row a kind of task: how an ability that is written in a file becomes a measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .abilities import exact_match, multiple_choice
from .ability_spec import AbilitySpec
from .generated import generated
from .generating import Decoding
from .suite import Measure, Split
from .suite_items import items_of

Items = Mapping[Split, list[Any]]


@dataclass(frozen=True)
class Scorer:
    """A kind of task.

    Attributes:
        summary: What is asked of the model.
        make: Puts the measure together from the spec, its items, and whether the chat template is applied.
    """

    summary: str
    make: Callable[[AbilitySpec, Items, bool], Measure]


def _multiple_choice(spec: AbilitySpec, items: Items, chat: bool) -> Measure:
    normalise = None if spec.normalise == "none" else spec.normalise
    return multiple_choice(spec.name, items, normalise=normalise, chat=chat, chance=spec.chance)


def _exact_match(spec: AbilitySpec, items: Items, chat: bool) -> Measure:
    return exact_match(spec.name, items, eos=spec.eos, chat=chat, chance=spec.chance or 0.0)


def _generated(spec: AbilitySpec, items: Items, chat: bool) -> Measure:
    assert spec.metric is not None  # AbilitySpec sees to it
    return generated(
        spec.name,
        items,
        metric=spec.metric,
        decoding=Decoding(spec.max_new_tokens or 256, tuple(spec.stop)),
        extract=spec.extract,
        take=spec.take,
        chat=chat,
        chance=spec.chance or 0.0,
    )


SCORERS: Mapping[str, Scorer] = {
    "multiple_choice": Scorer("the right choice is the most probable one", _multiple_choice),
    "exact_match": Scorer("greedy decoding would write the answer, told without decoding", _exact_match),
    "last_word": Scorer("greedy decoding would write a text's last word, told without decoding", _exact_match),
    "generated": Scorer("the answer is written by greedy decoding and compared by a metric", _generated),
}


def ability(spec: AbilitySpec, directory: Path, *, chat: bool = False) -> Measure:
    """The measure of an ability.

    Args:
        spec: The ability.
        directory: Where relative paths of rows start.
        chat: Whether the chat template is applied where the ability does not say.
    """
    return SCORERS[spec.kind].make(spec, items_of(spec, directory), chat if spec.chat is None else spec.chat)
