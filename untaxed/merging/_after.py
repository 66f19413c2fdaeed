"""A rule over all tensors of the models that a study has: `initial`, and `aligned` of one training or of several."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..sites import Weights
from ..weights import check_same
from ._rule import Rule, merged
from ._whole import check_whole


def after(rule: Rule, initial: Weights, aligned: Weights) -> dict[str, Tensor]:
    """Merges the aligned weights with the initial ones, which are the base, or the second model where there is none.

    Returns:
        New tensors with ``aligned``'s names, dtypes and devices; integer and boolean ones are those of the
        larger share, copied.
    Raises:
        ValueError: Names or shapes differ, or the tensors are an adapter's.
    """
    check_whole(initial, aligned)
    check_same(initial, aligned)
    given = {
        name: ([end], initial[name]) if rule.needs_base else ([end, initial[name]], None)
        for name, end in aligned.items()
    }
    return {name: merged(rule, models, base, name=name) for name, (models, base) in given.items()}


def check_members(members: int) -> None:
    """Raises `ValueError` unless a method is given as many trainings as there is something to merge."""
    if members < 2:
        raise ValueError(f"members must be at least 2, got {members}: one training leaves nothing to merge")


def after_all(rule: Rule, initial: Weights, members: Sequence[Weights]) -> dict[str, Tensor]:
    """Merges the weights of several trainings; the initial ones, with which all began, are the base.

    Returns:
        New tensors with the first training's names, dtypes and devices; integer and boolean ones are those of the
        largest share, copied.
    Raises:
        ValueError: Names or shapes differ, the tensors are an adapter's, or the rule is for another number of
            trainings.
    """
    rule.check(len(members))
    check_whole(initial, *members)
    for number, weights in enumerate(members):
        check_same(initial, weights, names=("initial", f"aligned {number}" if number else "aligned"))
    return {name: merged(rule, [one[name] for one in members], initial[name], name=name) for name in members[0]}
