"""The average alone: training is plain, and what is measured and shipped is the average beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ..method import Method
from ..sites import ALONE, Between, Host, Site
from ._average import WeightAverage, check_average
from ._settings import check_patterns, settings_of


class EMAState:
    """An average that goes along with a policy and never changes it; call `step()` after every `optimizer.step()`."""

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        self.average = WeightAverage(model, **settings)

    def due(self) -> bool:
        return False

    def step(self) -> bool:
        """Advances by one optimizer step; the policy's weights stay."""
        self.average.step()
        return False

    def skip(self) -> None:
        self.step()

    def variant(self) -> dict[str, Tensor]:
        """The average as it stands; nothing where its bias is corrected and nothing was taken in yet."""
        return self.average.tensors() if self.average.updates or not self.average.bias_correction else {}

    def state_dict(self) -> dict[str, Any]:
        return self.average.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.average.load_state_dict(state)


@dataclass(frozen=True)
class EMA(Method):
    """Keeps an exponential average beside the policy, which is what is measured and shipped.

    Args:
        decay: Of the average, in [0, 1].
        half_life: In place of ``decay``: optimizer steps after which what was taken in counts half.
        update_every: Optimizer steps between updates.
        warm_up: See `WeightAverage`.
        bias_correction: True: the start does not count.
        device: "cpu" keeps the average in the host's memory; None: where the policy is.
        exclude: Shell patterns of parameters that are not averaged; a value head never is, unless this is None.
    """

    name: ClassVar[str] = "ema"
    title: ClassVar[str] = "Average beside the policy"
    source: ClassVar[str] = "Polyak and Juditsky 1992; control of arXiv:2312.07551"
    summary: ClassVar[str] = "training is plain; measured and shipped is the exponential average of its weights"
    acts: ClassVar[frozenset[Site]] = frozenset({"between"})

    decay: float | None = None
    half_life: float | None = None
    update_every: int = 1
    warm_up: int = 0
    bias_correction: bool = False
    device: Literal["cpu"] | None = None
    exclude: tuple[str, ...] | None = ()

    def __post_init__(self) -> None:
        own = (self.decay, self.half_life, self.update_every, self.warm_up, self.device)
        check_average(*own, bias_correction=self.bias_correction)
        check_patterns("exclude", self.exclude)

    def settings(self) -> dict[str, Any]:
        """The last two only where they are not at their defaults."""
        return settings_of(self, hidden=("device", "exclude"))

    @property
    def ships_other(self) -> bool:
        return True

    def between(self, model: nn.Module, host: Host = ALONE) -> Between:
        return EMAState(model, **self.settings())
