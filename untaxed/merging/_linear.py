"""Weighted sums of whole models: averages, model soups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ._combining import checked, combined, largest, shares, spread
from ._rule import Rule, Survey, merged


@dataclass(frozen=True)
class LinearRule(Rule):
    """`linear` with its numbers.

    Args:
        weights: One a model.
        normalize: Divides the weights by their sum.
    """

    weights: tuple[float, ...]
    normalize: bool = True

    def __post_init__(self) -> None:
        checked(self.weights, len(self.weights))
        checked(self._shares, len(self.weights), "normalized weights")

    @property
    def _shares(self) -> tuple[float, ...]:
        return shares(self.weights) if self.normalize else self.weights

    def owner(self) -> int:
        return largest(self._shares)

    def check(self, models: int) -> None:
        super().check(models)
        checked(self.weights, models)

    def combine(
        self, models: Sequence[Tensor], base: Tensor | None, *, survey: Survey | None, name: str, offset: int
    ) -> Tensor:
        return combined(models, self._shares)


def linear(models: Sequence[Tensor], *, weights: Sequence[float] | None = None, normalize: bool = True) -> Tensor:
    r"""Adds up tensors of several models, each with its weight.

    .. math:: \theta = \sum_k w_k \theta_k \Big/ \sum_k w_k

    Args:
        models: One tensor a model, of one shape.
        weights: :math:`w_k`, one a model; all 1 where not given.
        normalize: False: the sum is not divided.
    Returns:
        A new tensor with the first one's dtype and device. Integer and boolean tensors: that of the largest
        weight, copied.
    Raises:
        ValueError: Shapes differ, there is not one finite weight a model, or weights to normalize sum to 0.
    Example:
        >>> linear([torch.zeros(2), torch.ones(2)], weights=[1, 3])
        tensor([0.7500, 0.7500])

    Source: Wortsman et al. 2022 (model soups), arXiv:2203.05482.
    Differs: computed in float32 (float64 stays float64), cast back once.
    """
    return merged(LinearRule(spread(weights, len(models)), normalize), models)
