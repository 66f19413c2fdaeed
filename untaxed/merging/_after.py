"""A rule over all tensors of the two models that a study has: `initial` and `aligned`."""

from __future__ import annotations

from torch import Tensor

from ..method import Weights
from ..weights import check_same
from ._rule import Rule, merged


def after(rule: Rule, initial: Weights, aligned: Weights) -> dict[str, Tensor]:
    """Merges the aligned weights with the initial ones, which are the base, or the second model where there is none.

    Returns:
        New tensors with ``aligned``'s names, dtypes and devices; integer and boolean ones are ``aligned``'s, copied.
    Raises:
        ValueError: Names or shapes differ.
    """
    check_same(initial, aligned)
    given = {
        name: ([end], initial[name]) if rule.needs_base else ([end, initial[name]], None)
        for name, end in aligned.items()
    }
    return {name: merged(rule, models, base, name=name) for name, (models, base) in given.items()}
