"""Penalties on the distance from initial, decoupled from the gradient: they act after the optimizer's step."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import softshrink

from ..checks import check_number
from ..method import Method
from ..sites import Context, Site
from ._rows import check_in_step
from ._sites import Entry


class Shrink:
    r"""The displacement rule :math:`d \leftarrow \max(0, 1 - \eta\lambda)\,d`, with the learning rate :math:`\eta`.

    Args:
        strength: :math:`\lambda`, at least 0; stands in the groups as ``l2_strength``.
    """

    elementwise = True

    def __init__(self, strength: float) -> None:
        _check(strength)
        self.defaults = {"l2_strength": strength}

    def __call__(self, displacement: Tensor, entry: Entry, state: MutableMapping[str, Any]) -> Tensor:
        amount = _amount(entry, "l2_strength")
        return displacement if amount == 0 else displacement * max(0.0, 1 - amount)


class SoftThreshold:
    r"""The displacement rule :math:`d \leftarrow \mathrm{sign}(d)\,\max(|d| - \eta\lambda, 0)`: a proximal step.

    Args:
        strength: :math:`\lambda`, at least 0; stands in the groups as ``l1_strength``.
    """

    elementwise = True

    def __init__(self, strength: float) -> None:
        _check(strength)
        self.defaults = {"l1_strength": strength}

    def __call__(self, displacement: Tensor, entry: Entry, state: MutableMapping[str, Any]) -> Tensor:
        amount = _amount(entry, "l1_strength")
        return displacement if amount == 0 else softshrink(displacement, amount)


@dataclass(frozen=True, kw_only=True)
class Penalty(Method):
    """What both rows share; abstract."""

    acts: ClassVar[frozenset[Site]] = frozenset({"displacement"})

    strength: float

    def __post_init__(self) -> None:
        _check(self.strength)

    def check(self, context: Context) -> None:
        check_in_step(self, context)


@dataclass(frozen=True, kw_only=True)
class L2(Penalty):
    r"""Pulls every weight back towards initial by a share of its displacement, after each step.

    .. math:: \theta \leftarrow \theta_{initial} + (1 - \eta\lambda)\,(\theta - \theta_{initial})

    :math:`\eta` is the learning rate of the step, so that schedules hold; the factor is never below 0. This is the
    decoupled form of the penalty :math:`\frac{\lambda}{2} \sum_i (\theta_i - \theta_{initial,i})^2`: a sum over
    weights, each for itself, so that a value means the same for a model of any size. It is the decay of AdamW with
    initial in the place of 0.

    Args:
        strength: :math:`\lambda`, at least 0, in 1 / (learning rate · steps): after 1 / (ηλ) steps a displacement that
            nothing renews has fallen to 1/e. 1/η and more never let a weight leave initial.

    Source: Xuhong et al. 2018 (L2-SP), arXiv:1802.01483; Loshchilov & Hutter 2019 (decoupled), arXiv:1711.05101.
    Differs: with an adaptive optimizer the papers' coupled penalty is divided by the gradient's size; this is not.
    """

    name: ClassVar[str] = "l2"
    title: ClassVar[str] = "L2 to initial"
    source: ClassVar[str] = "Xuhong et al. 2018 (L2-SP), arXiv:1802.01483; Lin et al. 2024, arXiv:2309.06256, section 2"
    summary: ClassVar[str] = "after every step each weight is pulled back by a share of its displacement from initial"
    shortens: ClassVar[bool] = True

    def displacement_rule(self) -> Shrink:
        return Shrink(self.strength)


@dataclass(frozen=True, kw_only=True)
class L1(Penalty):
    r"""Pulls every weight back towards initial by a fixed distance, after each step; what is nearer stays at initial.

    .. math:: d \leftarrow \mathrm{sign}(d)\,\max(|d| - \eta\lambda,\, 0), \qquad d = \theta - \theta_{initial}

    :math:`\eta` is the learning rate of the step, so that schedules hold. This is the proximal step of the penalty
    :math:`\lambda \sum_i |\theta_i - \theta_{initial,i}|`: a sum over weights, each for itself, so that a value means
    the same for a model of any size. Few weights move at all.

    Args:
        strength: :math:`\lambda`, at least 0: the pull in learning rates a step. Adam moves a weight by at most about
            one learning rate a step; so 0.1 lets go only what moves in one direction in more than a tenth of it, and
            at 1 and above next to nothing leaves initial. The default is what validation chose in the pocket world.

    Source: Lin et al. 2024, arXiv:2309.06256, section 2; proximal step: Parikh & Boyd 2014, section 6.5.2.
    Differs: the paper adds a subgradient to the loss, with which no weight is ever exactly initial's.
    """

    name: ClassVar[str] = "l1"
    title: ClassVar[str] = "L1 to initial"
    source: ClassVar[str] = "Lin et al. 2024, arXiv:2309.06256, section 2"
    summary: ClassVar[str] = "after every step each weight is pulled back by a fixed distance; small moves are undone"

    strength: float = 0.1

    def displacement_rule(self) -> SoftThreshold:
        return SoftThreshold(self.strength)


def _amount(entry: Entry, setting: str) -> float:
    """Learning rate times strength; a rate may be a tensor."""
    return float(entry.group["lr"]) * float(entry.settings[setting])


def _check(strength: object) -> None:
    check_number("strength", strength)
    if strength < 0:  # type: ignore[operator]
        raise ValueError(f"strength must be at least 0, got {strength}")
