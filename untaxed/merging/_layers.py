"""The repeated layers of a model, found in its tensors' names: ``model.layers.3.mlp.up_proj.weight`` is of layer 3."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

NUMBERED = re.compile(r"(?P<stack>.+?)\.(?P<layer>\d+)\.(?P<inner>.+)")  # the first number: experts stand further in


class Place(NamedTuple):
    """Where a tensor of a layer stands."""

    stack: str
    layer: int
    inner: str

    @property
    def name(self) -> str:
        return f"{self.stack}.{self.layer}.{self.inner}"


def place(name: str) -> Place | None:
    """The place that a name speaks of; None where it has no number."""
    found = NUMBERED.fullmatch(name)
    return Place(found["stack"], int(found["layer"]), found["inner"]) if found else None


def stacks(names: Iterable[str]) -> dict[str, int]:
    """How many layers each stack of layers has.

    A stack is numbered from 0 without a gap, and some module (not a bare weight, as in a head of a few linear maps)
    occurs in all of its layers.

    Example:
        >>> stacks(["wte.weight", "h.0.ln.weight", "h.1.ln.weight", "score.0.weight", "score.2.weight"])
        {'h': 2}
    """
    layers: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for found in filter(None, map(place, names)):
        if "." in found.inner:
            layers[found.stack][found.layer].add(found.inner)
    return {
        stack: len(inner)
        for stack, inner in layers.items()
        if set(inner) == set(range(len(inner))) and set.intersection(*inner.values())
    }


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
