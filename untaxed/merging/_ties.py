"""TIES: trim what each training changed to its largest entries, elect signs, average what agrees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import check_number
from ..counter import mask_key
from ..largest import Largest
from ..method import Method
from ..sites import Site, Weights
from ..sparsify import kept_count
from ._after import after
from ._combining import check_kept, checked, elected, of_deltas, only_kept, over_all, spread
from ._rule import Rule, Survey, merged


@dataclass(frozen=True)
class TiesRule(Rule):
    """`ties` with its numbers.

    Args:
        weights: One a model.
        densities: One a model, in (0, 1].
        normalize: Divides by the weights of those that agree.
        scale: Of what comes out.
        seed: Of the choice among equal magnitudes.
    """

    needs_base: ClassVar[bool] = True

    weights: tuple[float, ...]
    densities: tuple[float, ...]
    normalize: bool = True
    scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_kept(self.weights, self.densities, len(self.weights))
        check_number("scale", self.scale)
        checked([self.scale * weight for weight in (1, *self.weights)], len(self.weights) + 1, "scaled weights")

    def owner(self) -> int | None:
        return of_deltas([self.scale * w for w in (over_all(self.weights) if self.normalize else self.weights)])

    @property
    def passes(self) -> int:
        return 4 if min(self.densities) < 1 else 1

    def check(self, models: int) -> None:
        super().check(models)
        check_kept(self.weights, self.densities, models)

    def survey(self, total: int, *, name: str = "") -> Trimming | None:
        found = {
            k: Largest(kept_count(total, density), key=mask_key(self.seed, name, 0, "ties"), zeros=False)
            for k, (weight, density) in enumerate(zip(self.weights, self.densities))
            if weight and density < 1 and total
        }
        return Trimming(found) if found else None

    def combine(
        self, models: Sequence[Tensor], base: Tensor | None, *, survey: Survey | None, name: str, offset: int
    ) -> Tensor:
        assert base is not None
        largest = survey.largest if isinstance(survey, Trimming) else {}
        used = [k for k, weight in enumerate(self.weights) if weight]
        if not used:
            return base
        alone = models[used[0]].clone() if len(used) == 1 else None
        falls = [torch.sub(base, models[k], out=models[k]) for k in used]
        for k, fall in zip(used, falls):
            if k in largest:
                largest[k].keep_(fall, offset)
        weights = [self.weights[k] for k in used]
        if alone is not None:
            weight = math.copysign(1, weights[0]) if self.normalize else weights[0]
            return only_kept(alone, base, falls[0], self.scale * weight)
        return elected(base, falls, weights, scale=self.scale, normalize=self.normalize)


class Trimming:
    """A survey of the magnitudes from which on each model's delta is kept."""

    def __init__(self, largest: dict[int, Largest]) -> None:
        self.largest = largest  # by the model's place
        self._open = set(largest)

    def take(self, models: Sequence[Tensor], base: Tensor | None, offset: int) -> None:
        assert base is not None
        for k in self._open:
            self.largest[k].take(torch.sub(base, models[k], out=models[k]), offset)

    def again(self) -> bool:
        self._open = {k for k in self._open if self.largest[k].again()}
        return bool(self._open)


def ties(
    models: Sequence[Tensor],
    base: Tensor,
    *,
    density: float | Sequence[float],
    weights: Sequence[float] | None = None,
    normalize: bool = True,
    scale: float = 1.0,
    seed: int = 0,
) -> Tensor:
    r"""Merges what several trainings changed in one base: the largest changes, where their signs agree.

    .. math:: \theta = \theta_{base} + \lambda \frac{\sum_{k \in A} w_k F(\delta_k)}{\sum_{k \in A} |w_k|}, \qquad
        A = \Big\{k : \mathrm{sign}\,w_k F(\delta_k) = \mathrm{sign} \sum_j w_j F(\delta_j)\Big\}

    entry by entry; :math:`F` keeps a tensor's largest entries by magnitude, exactly max(1, round(density · n)) of them.

    Args:
        models: One tensor a model, of one shape.
        base: The tensor that they were all trained from.
        density: Fraction kept, in (0, 1]; one for all, or one a model.
        weights: :math:`w_k`, one a model; all 1 where not given. A negative one takes its model's changes away.
        normalize: False: the sum of what agrees, not its mean.
        scale: :math:`\lambda`.
        seed: Of the choice among entries of equal magnitude, which does not depend on the model's place.
    Returns:
        A new tensor with the first model's dtype and device. Integer and boolean tensors: that of the largest share,
        the base's or a model's, copied.
        Of a single model the entries kept are its own, bit for bit, and the others the base's.
    Raises:
        ValueError: Shapes differ, a density is outside (0, 1], or there is not one finite weight and density a model.
    Example:
        >>> ties([torch.tensor([3.0, 1.0, -4.0]), torch.tensor([5.0, -2.0, 2.0])], torch.zeros(3), density=0.67)
        tensor([ 4.,  0., -4.])

    Source: Yadav et al. 2023, arXiv:2306.01708, Algorithm 1.
    Differs: the largest are those of a tensor, where the paper takes those of the whole model. An exact tie of signs
        leaves the base, where the paper's code takes the sign that most of the model's entries have. Equal magnitudes
        go by random bits, where sorting takes whatever comes first. Computed in float32 (float64 stays float64),
        cast back once.
    """
    count = len(models)
    return merged(TiesRule(spread(weights, count), spread(density, count), normalize, scale, seed), models, base)


@dataclass(frozen=True)
class TIES(Method):
    """Keeps the largest of what alignment changed in each tensor; the other entries are initial's again.

    Args:
        density: Fraction kept, in (0, 1].
        scale: What is kept counts so much.
    """

    name: ClassVar[str] = "ties"
    title: ClassVar[str] = "TIES"
    source: ClassVar[str] = "Yadav et al. 2023, arXiv:2306.01708"
    summary: ClassVar[str] = "keeps the largest changes of each tensor and returns the others to initial"
    acts: ClassVar[frozenset[Site]] = frozenset({"after"})

    density: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        self._rule()

    def _rule(self) -> TiesRule:
        return TiesRule((1.0,), (self.density,), scale=self.scale)

    def after(self, initial: Weights, aligned: Weights) -> dict[str, Tensor]:
        return after(self._rule(), initial, aligned)
