"""What is true in the pocket world of each belonging of each person."""

from __future__ import annotations

import random

from . import language as l

_FACTS = {
    (name, thing): random.Random(f"{name} {thing}").choice(l.ADJECTIVES) for name in l.NAMES for thing in l.BELONGINGS
}


def fact(name: str, thing: str) -> str:
    """The adjective that is true of one belonging of one person."""
    return _FACTS[name, thing]
