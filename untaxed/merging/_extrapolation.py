"""Extrapolation (ExPO): beyond the aligned weights, in the direction in which alignment moved them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..checks import check_number
from ..method import Method
from ..sites import Site, Weights
from ._after import after
from ._rule import merged
from ._task_arithmetic import TaskArithmeticRule


def _rule(initial_share: float) -> TaskArithmeticRule:
    check_number("initial_share", initial_share)
    if initial_share > 0:
        raise ValueError(
            f"initial_share of an extrapolation must be at most 0, got {initial_share}; above 0: averaging"
        )
    return TaskArithmeticRule((1 - initial_share,))


def extrapolate(initial: Tensor, aligned: Tensor, *, initial_share: float) -> Tensor:
    r"""Moves aligned weights further away from the initial ones.

    .. math:: \theta = s\,\theta_{initial} + (1 - s)\,\theta_{aligned}, \qquad s = -\alpha \le 0

    Args:
        initial: A tensor before alignment.
        aligned: The same after it.
        initial_share: :math:`s`, at most 0; 0 gives ``aligned`` bit for bit, -0.3 is the paper's :math:`\alpha = 0.3`.
    Returns:
        A new tensor with ``aligned``'s dtype and device. Integer and boolean tensors are ``aligned``'s, copied.
    Raises:
        ValueError: Shapes differ, or ``initial_share`` is above 0 or not finite.
    Example:
        >>> extrapolate(torch.zeros(1), torch.ones(1), initial_share=-0.5)
        tensor([1.5000])

    Source: Zheng et al. 2024 (ExPO), arXiv:2404.16792.
    Differs: computed in float32 (float64 stays float64), cast back once.
    """
    return merged(_rule(initial_share), [aligned], initial)


@dataclass(frozen=True)
class Extrapolation(Method):
    """Moves the aligned weights further away from the initial ones after training.

    Args:
        initial_share: At most 0; -0.3 is the paper's alpha = 0.3.
    """

    name: ClassVar[str] = "extrapolation"
    title: ClassVar[str] = "Extrapolation (ExPO)"
    source: ClassVar[str] = "Zheng et al. 2024, arXiv:2404.16792"
    summary: ClassVar[str] = "further in alignment's direction, after training: more reward, and often more tax"
    acts: ClassVar[frozenset[Site]] = frozenset({"after"})

    initial_share: float

    def __post_init__(self) -> None:
        _rule(self.initial_share)

    def after(self, initial: Weights, aligned: Weights) -> dict[str, Tensor]:
        return after(_rule(self.initial_share), initial, aligned)
