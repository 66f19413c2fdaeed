"""Where a long measurement may note what every batch gave, so that one that is cut off goes on from there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Journal:
    """Keeps nothing; whoever wants to go on after a kill gives one that does.

    Attributes:
        of: What everything in it was computed with, the model above all; empty where nothing is kept.
    """

    of: str = ""

    def once(self, about: Callable[[], Any], compute: Callable[[], T]) -> T:
        """What `compute` returns, now or at an earlier call with the same `about`.

        Args:
            about: Returns, as plain values, all that the result depends on beside `of`; called where it is needed.
            compute: Returns a tensor of numbers or a list of texts.
        """
        return compute()


NOTHING_KEPT = Journal()
