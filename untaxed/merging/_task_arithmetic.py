"""Task arithmetic: weighted sums of what several trainings changed in one base model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..checks import check_number
from ._combining import SAME, checked, combined, of_deltas, shares, spread
from ._rule import Rule, Survey, merged


@dataclass(frozen=True)
class TaskArithmeticRule(Rule):
    """`task_arithmetic` with its numbers.

    Args:
        weights: One a model.
        scale: Of the sum of deltas.
        normalize: Divides the weights by their sum.
    """

    needs_base: ClassVar[bool] = True

    weights: tuple[float, ...]
    scale: float = 1.0
    normalize: bool = False

    def __post_init__(self) -> None:
        checked(self.weights, len(self.weights))
        check_number("scale", self.scale)
        checked(self._moves, len(self.weights), "scaled weights")

    @property
    def _moves(self) -> tuple[float, ...]:
        """How far the base is moved along each delta."""
        return tuple(self.scale * w for w in (shares(self.weights) if self.normalize else self.weights))

    def owner(self) -> int | None:
        return of_deltas(self._moves)

    def check(self, models: int) -> None:
        super().check(models)
        checked(self.weights, models)

    def combine(
        self, models: Sequence[Tensor], base: Tensor | None, *, survey: Survey | None, name: str, offset: int
    ) -> Tensor:
        assert base is not None
        return moved(models, base, self._moves)


def moved(models: Sequence[Tensor], base: Tensor, weights: Sequence[float]) -> Tensor:
    r"""The base moved by weighted deltas, :math:`base + \sum_k w_k (\theta_k - base)`; writes over its arguments."""
    left = 1 - math.fsum(weights)
    return combined([base, *models], [0.0 if abs(left) < SAME else left, *weights])


def task_arithmetic(
    models: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
    normalize: bool = False,
) -> Tensor:
    r"""Adds to a base model what each training changed in it, each with its weight.

    .. math:: \theta = \theta_{base} + \lambda \sum_k w_k (\theta_k - \theta_{base})

    Args:
        models: One tensor a model, of one shape.
        base: The tensor that they were all trained from.
        weights: :math:`w_k`, one a model; all 1 where not given. A negative one takes an ability away.
        scale: :math:`\lambda`.
        normalize: Divides the weights by their sum.
    Returns:
        A new tensor with the first model's dtype and device. Integer and boolean tensors: that of the largest share,
        the base's or a model's, copied.
    Raises:
        ValueError: Shapes differ, there is not one finite weight a model, or weights to normalize sum to 0.
    Example:
        >>> task_arithmetic([torch.tensor([2.0, 1.0]), torch.tensor([1.0, 4.0])], torch.ones(2))
        tensor([2., 4.])

    Source: Ilharco et al. 2023, arXiv:2212.04089.
    Differs: computed in float32 (float64 stays float64), cast back once.
    """
    return merged(TaskArithmeticRule(spread(weights, len(models)), scale, normalize), models, base)
