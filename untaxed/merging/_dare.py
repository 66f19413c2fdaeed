"""DARE: drop what each training changed at random, make up for it, and merge the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..checks import check_number
from ..counter import draw_below, mask_key
from ..method import Method
from ..sites import Site, Weights
from ..sparsify import Rescale, keep_below
from ._after import after
from ._combining import check_kept, checked, elected, of_deltas, only_kept, over_all, pieces, shares, spread
from ._rule import Rule, Survey, merged
from ._sums import Sums

Consensus = Literal["sum", "sign"]


@dataclass(frozen=True)
class DareRule(Rule):
    """`dare` with its numbers.

    Args:
        weights: One a model.
        densities: One a model, in (0, 1].
        consensus: "sum" or "sign".
        rescale: "inverse", "l1" or "none".
        normalize: Divides by the weights: of all, or for "sign" of those that agree.
        scale: Of what comes out.
        seed: Of the masks.
    """

    needs_base: ClassVar[bool] = True

    weights: tuple[float, ...]
    densities: tuple[float, ...]
    consensus: Consensus = "sum"
    rescale: Rescale = "inverse"
    normalize: bool = False
    scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_kept(self.weights, self.densities, len(self.weights))
        check_number("scale", self.scale)
        if self.consensus not in ("sum", "sign"):
            raise ValueError(f"consensus must be sum or sign, got {self.consensus!r}")
        if self.rescale not in ("none", "inverse", "l1"):
            raise ValueError(f"rescale must be none, inverse or l1, got {self.rescale!r}")
        moves = [abs(move) / density for move, density in zip(self._moves, self.densities)]
        checked([self.scale, *moves], len(moves) + 1, "rescaled weights")

    @property
    def _moves(self) -> tuple[float, ...]:
        """How far the base is moved along each delta."""
        normalized = shares if self.consensus == "sum" else over_all
        return tuple(self.scale * w for w in (normalized(self.weights) if self.normalize else self.weights))

    def owner(self) -> int | None:
        return of_deltas(self._moves)

    @property
    def passes(self) -> int:
        return 2 if self._surveyed else 1

    @property
    def _surveyed(self) -> bool:
        return self.rescale == "l1" and min(self.densities) < 1

    def check(self, models: int) -> None:
        super().check(models)
        check_kept(self.weights, self.densities, models)

    def survey(self, total: int, *, name: str = "") -> Magnitudes | None:
        return Magnitudes(self, total, name) if self._surveyed else None

    def combine(
        self, models: Sequence[Tensor], base: Tensor | None, *, survey: Survey | None, name: str, offset: int
    ) -> Tensor:
        assert base is not None
        used = [k for k, weight in enumerate(self.weights) if weight]
        if not used:
            return base
        weights = shares(self.weights) if self.normalize and self.consensus == "sum" else self.weights
        by = [self._rescaling(k, survey) for k in range(len(models))]
        alone = models[used[0]].clone() if len(used) == 1 else None
        falls = [self.dropped_(torch.sub(base, models[k], out=models[k]), k, name, offset) for k in used]
        if alone is not None:
            weight = weights[used[0]]
            weight = math.copysign(1, weight) if self.normalize else weight
            return only_kept(alone, base, falls[0], self.scale * weight * by[used[0]])
        if self.consensus == "sum":
            for run, *others in pieces(base, *falls):
                for k, other in zip(used, others):
                    run.sub_(other, alpha=self.scale * weights[k] * by[k])
            return base
        for k, fall in zip(used, falls):
            fall.mul_(by[k])
        return elected(base, falls, [weights[k] for k in used], scale=self.scale, normalize=self.normalize)

    def dropped_(self, delta: Tensor, model: int, name: str, offset: int) -> Tensor:
        """Sets what the model's mask drops of a block to 0, in place."""
        density = self.densities[model]
        if density == 1:
            return delta
        key = mask_key(self.seed, name, 0, f"dare {model}")
        return delta.mul_(draw_below(keep_below(density), key, torch.empty_like(delta), offset=offset))

    def _rescaling(self, model: int, survey: Survey | None) -> float:
        density = self.densities[model]
        if density == 1 or self.rescale == "none":
            return 1.0
        if self.rescale == "inverse":
            return 1 / density
        assert isinstance(survey, Magnitudes)
        return survey.ratios[model]


class Magnitudes:
    """A survey of the sums of magnitudes of each model's delta, and of what its mask keeps."""

    def __init__(self, rule: DareRule, total: int, name: str) -> None:
        self._rule, self._name = rule, name
        self._sums = Sums(2 * len(rule.weights), total)
        self.ratios: list[float] = []  # all / kept, one a model, after the pass

    def take(self, models: Sequence[Tensor], base: Tensor | None, offset: int) -> None:
        assert base is not None
        whole = [torch.sub(model, base, out=model) for model in models]
        kept = [self._rule.dropped_(delta.clone(), k, self._name, offset) for k, delta in enumerate(whole)]
        start = offset
        for parts in pieces(*whole, *kept):
            self._sums.add(start, [part.to(torch.float64).abs_() for part in parts])
            start += parts[0].numel()

    def again(self) -> bool:
        totals = self._sums.total()
        whole, kept = totals[: len(totals) // 2], totals[len(totals) // 2 :]
        self.ratios = [one / two if two else 1.0 for one, two in zip(whole, kept)]
        return False


def dare(
    models: Sequence[Tensor],
    base: Tensor,
    *,
    density: float | Sequence[float],
    weights: Sequence[float] | None = None,
    consensus: Consensus = "sum",
    rescale: Rescale = "inverse",
    normalize: bool | None = None,
    scale: float = 1.0,
    seed: int = 0,
    name: str = "",
) -> Tensor:
    r"""Merges a random part of what several trainings changed in one base, made larger for what is left out.

    .. math:: \theta = \theta_{base} + \lambda\,C(w_1, r_1 m_1 \delta_1;\; w_2, r_2 m_2 \delta_2;\; \dots), \qquad
        m_k \sim \mathrm{Bernoulli}(density)

    :math:`C` is the weighted sum, or TIES' sum of those whose signs agree (`ties`, without its trimming).

    Args:
        models: One tensor a model, of one shape.
        base: The tensor that they were all trained from.
        density: Fraction kept, in (0, 1]; one for all, or one a model.
        weights: :math:`w_k`, one a model; all 1 where not given.
        consensus: "sum" (DARE with task arithmetic) or "sign" (DARE with TIES).
        rescale: "inverse": :math:`r = 1/density`; "l1": the sum of magnitudes is what it was; "none": 1.
        normalize: Divides by the weights, of all or for "sign" of those that agree. Not given: for "sign" only.
        scale: :math:`\lambda`.
        seed: Of the masks, which depend on it, on ``name``, on the model's place in the list and on nothing else.
        name: The tensor's name.
    Returns:
        A new tensor with the first model's dtype and device. Integer and boolean tensors: that of the largest share,
        the base's or a model's, copied.
    Raises:
        ValueError: Shapes differ, a density is outside (0, 1], a name is unknown, or there is not one finite weight and
            density a model.
    Example:
        >>> dare([torch.ones(6)], torch.zeros(6), density=0.5)
        tensor([0., 0., 2., 0., 2., 0.])

    Source: Yu et al. 2024, arXiv:2311.03099; for "l1" mergekit.
    Differs: masks come from a counter and not from a generator, so that any tensor can be made again alone. Computed in
        float32 (float64 stays float64), cast back once.
    """
    count = len(models)
    normalized = consensus == "sign" if normalize is None else normalize
    rule = DareRule(spread(weights, count), spread(density, count), consensus, rescale, normalized, scale, seed)
    return merged(rule, models, base, name=name)


@dataclass(frozen=True)
class DARE(Method):
    """Keeps a random part of what alignment changed, made larger for what returns to initial.

    Args:
        density: Fraction kept, in (0, 1].
        rescale: "inverse": by 1/density; "l1": so that the sum of magnitudes is what it was; "none".
        scale: What is kept counts so much.
        seed: Of the masks.
    """

    name: ClassVar[str] = "dare"
    title: ClassVar[str] = "DARE"
    source: ClassVar[str] = "Yu et al. 2024, arXiv:2311.03099"
    summary: ClassVar[str] = "drops a random part of the changes and makes up for it in the others"
    acts: ClassVar[frozenset[Site]] = frozenset({"after"})

    density: float
    rescale: Rescale = "inverse"
    scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._rule()

    def _rule(self) -> DareRule:
        return DareRule((1.0,), (self.density,), rescale=self.rescale, scale=self.scale, seed=self.seed)

    def after(self, initial: Weights, aligned: Weights) -> dict[str, Tensor]:
        return after(self._rule(), initial, aligned)
