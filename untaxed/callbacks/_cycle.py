"""When a reset is due: by the clock, by a clock that slows down, or when a measured drift is too large."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ._guards import Limits, limits

LONGEST = 2.0**53  # of a cycle, in updates: longer than any training
Readings = Callable[[], Mapping[str, float]]


class Cycle:
    """Counts optimizer steps since the last reset and says when the next is due.

    Args:
        reset_every: Steps of the first whole cycle; None: the clock never resets.
        update_every: Cycles are whole multiples of it.
        lengthen: Each cycle is so many times as long as the one before, rounded up.
        skip_first: False: the first reset comes after the first update already, as in the authors' code.
        reset_when: Limits of drift measures, see `limits`; one that is reached suffices.
        readings: The drift meter's last readings; only what was measured since the last reset counts.
    """

    def __init__(
        self,
        reset_every: int | None,
        *,
        update_every: int = 1,
        lengthen: float = 1.0,
        skip_first: bool = True,
        reset_when: Limits | None = None,
        readings: Readings | None = None,
    ) -> None:
        self._every, self._unit, self._lengthen = reset_every, update_every, lengthen
        self._skip_first = skip_first
        self._limits = limits(reset_when) if reset_when else ()
        self._readings = readings
        self.since = 0
        self.resets = 0
        self.asked = False  # from outside, for a reset at the next step
        self.read_at = 0  # the meter's step whose readings led to the last reset by drift

    def length(self) -> int | None:
        """Steps of the cycle that is running, by the clock."""
        if self._every is None:
            return None
        if not self._skip_first and self.resets == 0:
            return self._unit
        done = self.resets - (0 if self._skip_first else 1)
        try:
            units = self._every * self._lengthen**done / self._unit
        except OverflowError:
            units = math.inf
        # rounded before it is rounded up, or 20 * 1.1 were 23
        return self._unit * math.ceil(round(min(units, LONGEST), 9))

    def due(self) -> bool:
        """True when the next step resets."""
        length = self.length()
        return (length is not None and self.since + 1 >= length) or self.asked or self._drifted()

    def advance(self) -> None:
        """One optimizer step."""
        self.since += 1

    def begin(self) -> None:
        """A reset was done."""
        if self._drifted():
            self.read_at = int(self._read()["step"])
        self.since, self.asked = 0, False
        self.resets += 1

    def state_dict(self) -> dict[str, Any]:
        counts = {"steps_since_reset": self.since, "resets": self.resets, "read_at": self.read_at}
        return {**counts, "asked": int(self.asked)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.since, self.resets, self.read_at = state["steps_since_reset"], state["resets"], state["read_at"]
        self.asked = bool(state["asked"])

    def _read(self) -> Mapping[str, float]:
        return self._readings() if self._readings else {}

    def _drifted(self) -> bool:
        read = self._read() if self._limits else {}
        return read.get("step", 0) > self.read_at and any(
            limit.crossed(read[limit.measure]) for limit in self._limits if limit.measure in read
        )
