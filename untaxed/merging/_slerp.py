"""Spherical interpolation: between two models along the arc, so that what lies between is not shorter than its ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..checks import check_fraction
from ..method import Method
from ..sites import Site, Weights
from ._after import after
from ._angles import Angles, along_the_arc, check_shares
from ._combining import combined, largest, spread
from ._rule import Rule, Survey, merged
from ._warp import WarpRule


@dataclass(frozen=True)
class SlerpRule(Rule):
    """`slerp` of weights with its numbers; of deltas it is a `WarpRule` with ``initial_share`` 0.

    Args:
        weights: One a model, not negative; of two models 1 - t and t.
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        check_shares(self.weights, len(self.weights))

    def check(self, models: int) -> None:
        super().check(models)
        check_shares(self.weights, models)

    def owner(self) -> int:
        return largest(self.weights)

    @property
    def passes(self) -> int:
        return 2

    def survey(self, total: int, *, name: str = "") -> Angles:
        return Angles(len(self.weights), total, deltas=False)

    def combine(
        self, models: Sequence[Tensor], base: Tensor | None, *, survey: Survey | None, name: str, offset: int
    ) -> Tensor:
        assert isinstance(survey, Angles)
        return combined(models, along_the_arc(survey.products, self.weights))


def slerp(models: Sequence[Tensor], base: Tensor | None = None, *, weights: Sequence[float] | None = None) -> Tensor:
    r"""Interpolates along the arc between tensors, or between their deltas where a base is given.

    .. math:: \mathrm{slerp}(x_1, x_2; t) = \frac{\sin((1 - t)\Omega)\,x_1 + \sin(t\Omega)\,x_2}{\sin\Omega}, \qquad
        \cos\Omega = \frac{x_1 \cdot x_2}{\lVert x_1\rVert \lVert x_2\rVert}

    :math:`x_k` is :math:`\theta_k`, or :math:`\theta_k - \theta_{base}` and the base is added again. More than two are
    taken one after the other: slerp(slerp of the first k − 1, the k-th; :math:`t = w_k / \sum_{j \le k} w_j`), so
    that their order matters a little.

    Args:
        models: One tensor a model, of one shape; at least one.
        base: The tensor that all were trained from.
        weights: One a model, not negative; (1 − t, t) for two. All equal where not given.
    Returns:
        A new tensor with the first one's dtype and device. Integer and boolean tensors: that of the largest
        weight, copied.
        A tensor's angle is that of all its entries. Where it is within 1e-4 of 0 or of pi, or one of the two is 0, the
        interpolation is linear: towards 0 that is the limit, opposite directions have no arc.
    Raises:
        ValueError: Shapes differ, or there is not one weight a model, all at least 0 and one above.
    Example:
        >>> slerp([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])])
        tensor([0.7071, 0.7071])

    Source: Shoemake 1985; of deltas, several at once: Ramé et al. 2024 (WARP), arXiv:2406.16768, section 3.2.
    Differs: WARP takes one angle a layer, here each tensor has its own. mergekit goes over to the line from a cosine of
        0.9995 on, where the arc is still up to 1.3e-4 longer. Angles in float64, the rest in float32 (float64 stays
        float64), cast back once.
    """
    given = spread(weights, len(models))
    return merged(SlerpRule(given) if base is None else WarpRule(given, initial_share=0), models, base)


@dataclass(frozen=True)
class SLERP(Method):
    """Interpolates along the arc between initial and aligned weights after training.

    Args:
        initial_share: Share of ``initial``, in [0, 1].
    """

    name: ClassVar[str] = "slerp"
    title: ClassVar[str] = "SLERP"
    source: ClassVar[str] = "Shoemake 1985; Ramé et al. 2024, arXiv:2406.16768"
    summary: ClassVar[str] = "averaging along the arc, tensor by tensor, which keeps the weights' length"
    acts: ClassVar[frozenset[Site]] = frozenset({"after"})

    initial_share: float

    def __post_init__(self) -> None:
        check_fraction("initial_share", self.initial_share)

    def after(self, initial: Weights, aligned: Weights) -> dict[str, Tensor]:
        return after(SlerpRule((1 - self.initial_share, self.initial_share)), initial, aligned)
