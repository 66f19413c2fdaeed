"""Measures a model: one call, all numbers, nothing left behind."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import torch

from ..errors import RunFailed, SpecError, nearest
from . import statistics
from .isolation import undisturbed
from .subject import Subject
from .suite import Group, Measure, Scores, Split


@dataclass(frozen=True)
class Reading:
    """What was measured on one model and split.

    Attributes:
        values: ``{"abilities": {"facts": 0.97}, …}``, every group present.
        scores: ``{"abilities.facts": (items, k) array}``, the sufficient statistics behind each value.
        texts: One ``{"prompt", "completion", "proxy", "gold"}`` a prompt where a reward was measured; a reward that
            was not is None.
        why: Why a value is undefined (nan, without scores), or what must be known beside it, by key or whole group.
        notes: What was left out or scored 0 for want of an answer, by key: ``["too long: 3 of 500 left out"]``.
    """

    values: dict[Group, dict[str, float]]
    scores: dict[str, Scores]
    texts: list[dict[str, str | float | None]]
    why: dict[str, str] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)


def measure(subject: Subject, split: Split, names: Collection[str] | None = None) -> Reading:
    """Measures a subject on one split, without gradients and without a trace in its training.

    Args:
        subject: The model with its suite.
        split: ``validation`` or ``test``.
        names: Keys of the measures wanted (``abilities.facts``), or whole groups (``drift``); None: all of the suite.
    Raises:
        SpecError: A name is in no measure of the suite.
        DataError: No item of a measure fits into the context, or a reward returned nonsense.
        RunFailed: A score is not finite, because the model has diverged.
    """
    wanted = _wanted(subject.suite.measures, names)
    values: dict[Group, dict[str, float]] = {"reward": {}, "abilities": {}, "drift": {}}
    scores: dict[str, Scores] = {}
    notes: dict[str, list[str]] = {}
    initial = subject.initial
    with undisturbed(subject.model, subject.tokenizer), undisturbed(initial.model, initial.tokenizer), torch.no_grad():
        for one in wanted:
            scores[one.key] = _finite(one, one.score(subject, split))
            if said := subject.take_notes():
                notes[one.key] = said
            values[one.group][one.name] = statistics.value(one.statistic, scores[one.key])
        texts = _texts(subject, split, scores)
    return Reading(values, scores, texts, notes=notes)


def _wanted(measures: tuple[Measure, ...], names: Collection[str] | None) -> list[Measure]:
    known = {one.key for one in measures} | {one.group for one in measures}
    for name in names or ():
        if name not in known:
            raise SpecError(f"the suite has no measure {name!r}{nearest(name, known)}")
    return [one for one in measures if names is None or one.key in names or one.group in names]


def _finite(one: Measure, scores: Scores) -> Scores:
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(bad):
        raise RunFailed(f"{one.key} of item {bad[0]} is {scores[bad[0]].tolist()}: the model has diverged")
    return scores


def _texts(subject: Subject, split: Split, scores: dict[str, Scores]) -> list[dict[str, str | float | None]]:
    if not any(f"reward.{name}" in scores for name in ("proxy", "gold")):
        return []
    drawn = subject.completions(split)
    pairs = enumerate(zip(drawn.prompts, drawn.texts, strict=True))
    return [
        {"prompt": prompt, "completion": text, "proxy": _at(scores, "proxy", row), "gold": _at(scores, "gold", row)}
        for row, (prompt, text) in pairs
    ]


def _at(scores: dict[str, Scores], name: str, row: int) -> float | None:
    rewards = scores.get(f"reward.{name}")
    return None if rewards is None else float(rewards[row, 0])
