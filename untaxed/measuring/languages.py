"""Which language a text is in."""

from __future__ import annotations

from functools import cache
from typing import Any

from ..errors import require


@cache
def _identifier() -> Any:
    return require("py3langid", extra="eval")


def language_of(text: str) -> str:
    """The ISO 639-1 code of the language that a text is most probably in, by the package py3langid."""
    return str(_identifier().classify(text)[0])
