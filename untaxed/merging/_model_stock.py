"""Model Stock: the average of several trainings, as far from the base as the angle between them says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

from torch import Tensor

from ..method import Method
from ..sites import Need, Site, Weights
from ._after import after_all, check_members
from ._angles import Angles, cosine
from ._rule import Rule, Survey, merged
from ._task_arithmetic import moved


@dataclass(frozen=True)
class ModelStockRule(Rule):
    """`model_stock`; it has no numbers.

    Args:
        models: How many are merged, the base not counted; at least 2.
    """

    needs_base: ClassVar[bool] = True
    least: ClassVar[int] = 2

    models: int = 2

    def check(self, models: int) -> None:
        super().check(models)
        if models != self.models:
            raise ValueError(f"this rule is for {self.models} models, got {models}")

    @property
    def passes(self) -> int:
        return 2

    def survey(self, total: int, *, name: str = "") -> Angles:
        return Angles(self.models, total, deltas=True)

    def combine(
        self, models: Sequence[Tensor], base: Tensor | None, *, survey: Survey | None, name: str, offset: int
    ) -> Tensor:
        assert isinstance(survey, Angles)
        assert base is not None
        share = stock_share(survey.products)
        return moved(models, base, [share / len(models)] * len(models))


def stock_share(products: Sequence[Sequence[float]]) -> float:
    """The average's share, from the inner products of the deltas."""
    count = len(products)
    pairs = [cosine(products, i, j) or 0.0 for i, j in combinations(range(count), 2)]
    mean = max(0.0, math.fsum(pairs) / len(pairs))
    return count * mean / (1 + (count - 1) * mean)


def model_stock(models: Sequence[Tensor], base: Tensor) -> Tensor:
    r"""Averages several trainings of one base and goes back to it as far as they disagree.

    .. math:: \theta = t\,\frac{1}{N} \sum_k \theta_k + (1 - t)\,\theta_{base}, \qquad
        t = \frac{N \cos\Omega}{1 + (N - 1) \cos\Omega}

    with :math:`\cos\Omega` the mean over all pairs of deltas.

    Args:
        models: One tensor a model, of one shape; at least two.
        base: The tensor that they were all trained from.
    Returns:
        A new tensor with the first model's dtype and device. Integer and boolean tensors: the first model's, copied.
    Raises:
        ValueError: Shapes differ, or there are fewer than two models.
    Example:
        >>> model_stock([torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0])], torch.zeros(2))  # 45 degrees: t = 0.8284
        tensor([1.2426, 0.4142])

    Source: Jang et al. 2024, arXiv:2403.19522, Eq. 2 and its form for N models.
    Differs: one angle a tensor. A mean cosine below 0 counts as 0 (the base), where the formula would go past the base;
        so does that of a pair of which one delta is 0. Angles in float64, the rest in float32 (float64 stays float64),
        cast back once.
    """
    return merged(ModelStockRule(len(models)), models, base)


@dataclass(frozen=True)
class ModelStock(Method):
    """Averages several trainings that differ in their seed, and goes back to initial as far as they disagree.

    Args:
        members: How many trainings, at least 2; the first is the arm's own run.
    """

    name: ClassVar[str] = "model_stock"
    title: ClassVar[str] = "Model Stock"
    source: ClassVar[str] = "Jang et al. 2024, arXiv:2403.19522"
    summary: ClassVar[str] = "averages several trainings, as far from initial as the angle between them says"
    acts: ClassVar[frozenset[Site]] = frozenset({"after"})
    needs: ClassVar[frozenset[Need]] = frozenset({"members"})

    members: int

    def __post_init__(self) -> None:
        check_members(self.members)

    def merge(self, initial: Weights, members: Sequence[Weights]) -> dict[str, Tensor]:
        return after_all(ModelStockRule(self.members), initial, members)
