"""WARP's iterate: spherical interpolation of deltas, then part of the way back to the initial model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..checks import check_fraction
from ..method import Method
from ..sites import Need, Site, Weights
from ._after import after_all, check_members
from ._angles import Angles, along_the_arc, check_shares
from ._combining import of_deltas, shares, spread
from ._rule import Rule, Survey, merged
from ._task_arithmetic import moved


@dataclass(frozen=True)
class WarpRule(Rule):
    """`warp` with its numbers.

    Args:
        weights: One a model, not negative.
        initial_share: Share of the base in the end.
    """

    needs_base: ClassVar[bool] = True

    weights: tuple[float, ...]
    initial_share: float = 0.7

    def __post_init__(self) -> None:
        check_shares(self.weights, len(self.weights))
        check_fraction("initial_share", self.initial_share)

    def check(self, models: int) -> None:
        super().check(models)
        check_shares(self.weights, models)

    def owner(self) -> int | None:
        return of_deltas([(1 - self.initial_share) * share for share in shares(self.weights)])

    @property
    def passes(self) -> int:
        return 2

    def survey(self, total: int, *, name: str = "") -> Angles:
        return Angles(len(self.weights), total, deltas=True)

    def combine(
        self, models: Sequence[Tensor], base: Tensor | None, *, survey: Survey | None, name: str, offset: int
    ) -> Tensor:
        assert isinstance(survey, Angles)
        assert base is not None
        arc = along_the_arc(survey.products, self.weights)
        return moved(models, base, [(1 - self.initial_share) * weight for weight in arc])


def warp(
    models: Sequence[Tensor], initial: Tensor, *, weights: Sequence[float] | None = None, initial_share: float = 0.7
) -> Tensor:
    r"""One iterate of WARP: the deltas of several trainings meet on their arc, and then go part of the way back.

    .. math:: \theta = \theta_{initial} + (1 - s)\,\mathrm{slerp}(\delta_1, \dots, \delta_M), \qquad
        \delta_k = \theta_k - \theta_{initial}

    Args:
        models: What the trainings ended with, one tensor each, of one shape.
        initial: What they all began with.
        weights: One a model, not negative; all equal where not given.
        initial_share: :math:`s = 1 - \eta`, in [0, 1]; the paper's :math:`\eta` is 0.3. 1 gives ``initial``.
    Returns:
        A new tensor with the first model's dtype and device. Integer and boolean tensors: that of the largest share,
        ``initial``'s or a model's, copied.
    Raises:
        ValueError: Shapes differ, a number is out of its range, or there is not one weight a model.
    Example:
        >>> warp([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])], torch.zeros(2), initial_share=0.5)
        tensor([0.3536, 0.3536])

    Source: Ramé et al. 2024 (WARP), arXiv:2406.16768, sections 3.2 and 3.3: SLERP and LITI. Its first stage, the
        average as the reference of training, is the method `warp_anchor`.
    Differs: one angle a tensor, where the paper takes one a layer; see `slerp` for deltas that are parallel.
    """
    return merged(WarpRule(spread(weights, len(models)), initial_share), models, initial)


@dataclass(frozen=True)
class WARP(Method):
    """Merges several trainings that differ in their seed on their arc, and goes part of the way back to initial.

    Args:
        members: How many trainings, at least 2; the first is the arm's own run.
        initial_share: Share of ``initial`` in the end, in [0, 1].
    """

    name: ClassVar[str] = "warp"
    title: ClassVar[str] = "WARP"
    source: ClassVar[str] = "Ramé et al. 2024, arXiv:2406.16768"
    summary: ClassVar[str] = (
        "several trainings meet on the arc of their deltas, then go part of the way back to initial"
    )
    acts: ClassVar[frozenset[Site]] = frozenset({"after"})
    needs: ClassVar[frozenset[Need]] = frozenset({"members"})

    members: int
    initial_share: float = 0.7

    def __post_init__(self) -> None:
        check_members(self.members)
        check_fraction("initial_share", self.initial_share)

    def merge(self, initial: Weights, members: Sequence[Weights]) -> dict[str, Tensor]:
        return after_all(WarpRule((1.0,) * self.members, self.initial_share), initial, members)
