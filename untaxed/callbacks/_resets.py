"""The controls that Elastic Reset is to be held against, and resets by drift: rows of their own for short specs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..method import Method
from ..sites import ALONE, Between, Context, Host, Site
from ._elastic_reset import ElasticReset
from ._elastic_state import ElasticResetState
from ._moments import MomentsRule
from ._settings import settings_of


class _Reset(Method, ABC):
    """A row that is Elastic Reset with some of its settings fixed."""

    acts: ClassVar[frozenset[Site]] = frozenset({"between"})
    resets: ClassVar[bool] = True
    hidden: ClassVar[tuple[str, ...]] = ("exclude",)  # settings that are said only where they are not at their defaults

    @abstractmethod
    def rule(self) -> ElasticReset:
        """The same in Elastic Reset's own settings."""

    def __post_init__(self) -> None:
        self.rule()

    def settings(self) -> dict[str, Any]:
        return settings_of(self, hidden=self.hidden)

    def tell(self) -> str:
        return self.rule().tell()

    def check(self, context: Context) -> None:
        self.rule().check(context)

    def between(self, model: nn.Module, host: Host = ALONE) -> Between:
        return ElasticResetState(model, self.rule(), host=host)


@dataclass(frozen=True)
class ResetToInitial(_Reset):
    """Resets the policy to the initial model at intervals; keeps no average.

    Args:
        reset_every: Optimizer steps between resets.
        moments: The optimizer's moments at a reset: "kept", or "cleared" with all that it keeps of a parameter.
        exclude: Shell patterns of parameters that are not reset; a value head never is, unless this is None.
    """

    name: ClassVar[str] = "reset_to_initial"
    title: ClassVar[str] = "Reset to initial"
    source: ClassVar[str] = "control of Noukhovitch et al. 2023, arXiv:2312.07551"
    summary: ClassVar[str] = "every n steps the policy falls back to the initial model: what is left is the optimizer"

    hidden: ClassVar[tuple[str, ...]] = ()

    reset_every: int
    moments: MomentsRule = "kept"
    exclude: tuple[str, ...] | None = ()

    def rule(self) -> ElasticReset:
        return ElasticReset(reset_every=self.reset_every, target="initial", moments=self.moments, exclude=self.exclude)


@dataclass(frozen=True)
class ResetToAverage(_Reset):
    """Resets the policy to its average at intervals; the average goes on from there.

    Args:
        decay: Of the average, in [0, 1].
        reset_every: Optimizer steps between resets, a multiple of ``update_every``.
        update_every: Optimizer steps between updates of the average.
        exclude: Shell patterns of parameters that are not reset; a value head never is, unless this is None.
    """

    name: ClassVar[str] = "reset_to_average"
    title: ClassVar[str] = "Reset to average"
    source: ClassVar[str] = "control of Noukhovitch et al. 2023, arXiv:2312.07551"
    summary: ClassVar[str] = "every n steps the policy falls back to its average, which is never reset itself"

    decay: float
    reset_every: int
    update_every: int = 1
    exclude: tuple[str, ...] | None = ()

    def rule(self) -> ElasticReset:
        return ElasticReset(
            decay=self.decay,
            reset_every=self.reset_every,
            update_every=self.update_every,
            reset_average=False,
            exclude=self.exclude,
        )


@dataclass(frozen=True)
class DriftTriggeredReset(_Reset):
    """Elastic Reset when the drift meter says so, in place of a clock.

    Args:
        forward_kl: Token-mean KL(initial, policy) in nats from which the policy is reset.
        decay: Of the average, in [0, 1].
        update_every: Optimizer steps between updates of the average.
        exclude: Shell patterns of parameters that are not reset; a value head never is, unless this is None.
    """

    name: ClassVar[str] = "drift_triggered_reset"
    title: ClassVar[str] = "Reset by drift"
    source: ClassVar[str] = "this project, after Noukhovitch et al. 2023, arXiv:2312.07551"
    summary: ClassVar[str] = "the policy falls back to its average when its measured drift is too large"

    forward_kl: float
    decay: float
    update_every: int = 1
    exclude: tuple[str, ...] | None = ()

    @property
    def reset_when(self) -> dict[str, float | dict[str, float]]:
        """What the drift meter must measure, and the limit."""
        return {"forward_kl": self.forward_kl}

    def rule(self) -> ElasticReset:
        return ElasticReset(
            decay=self.decay, update_every=self.update_every, reset_when=self.reset_when, exclude=self.exclude
        )
