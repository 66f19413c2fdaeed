"""The items behind a loss: those that a model gets wrong and initial right, and the other way round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..measuring import Subject, undisturbed
from ..measuring.suite import Measure, Split
from .scores import Splits

SHOWN = 10  # items of a kind that are shown

Place = tuple[Split, int]


def examples(
    one: Measure,
    initial: Splits,
    model: Splits,
    splits: Sequence[Split],
    subjects: Callable[[], tuple[Subject, Subject]],
) -> dict[str, Any]:
    """Some of the items that were lost and won, with both answers.

    Args:
        initial, model: The measure's scores on both.
        splits: Where to look.
        subjects: Gives initial and model when items have to be answered again.
    Returns:
        ``lost``, ``won`` -> ``{"prompt", "expected", "initial", "model"}`` each, spread over the items; empty where the
        measure shows none.
    """
    if one.show is None:
        return {}
    worse = {split: initial[split][:, 0] - model[split][:, 0] for split in splits}
    places = {"lost": _spread(worse, 1), "won": _spread(worse, -1)}
    if not any(places.values()):
        return {"lost": [], "won": []}
    start, other = subjects()
    return {kind: _both(one, start, other, chosen) for kind, chosen in places.items()}


def _spread(worse: dict[Split, np.ndarray], sign: int) -> list[Place]:
    """At most `SHOWN` of the items that changed in this direction, from the first to the last alike often."""
    found = [(split, int(at)) for split, values in worse.items() for at in np.flatnonzero(sign * values > 0)]
    if len(found) <= SHOWN:
        return found
    return [found[int(at)] for at in np.linspace(0, len(found) - 1, SHOWN).round()]


def _both(one: Measure, start: Subject, other: Subject, places: Sequence[Place]) -> list[dict[str, str]]:
    assert one.show is not None
    rows = []
    for split in dict.fromkeys(split for split, _ in places):
        chosen = [at for where, at in places if where == split]
        with undisturbed(start.model, start.tokenizer), undisturbed(other.model, other.tokenizer):
            answers = [one.show(subject, split, chosen) for subject in (start, other)]
        rows += [
            {"prompt": a.prompt, "expected": a.expected, "initial": a.answer, "model": b.answer}
            for a, b in zip(*answers, strict=True)
        ]
    return rows
