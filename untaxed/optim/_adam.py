r"""Adam's own arithmetic, in single IEEE operations, so that the compiled form gives the same bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import Tensor

Adam = Literal["torch", "algorithm_box"]
KINDS = get_args(Adam)


def coefficients(group: Mapping[str, Any], step: int) -> tuple[float, float]:
    """The step size and the divisor of the second moment's root: bias correction, or 1 in the algorithm box."""
    beta1, beta2 = group["betas"]
    if group["adam"] == "algorithm_box":
        return group["lr"], 1.0
    return group["lr"] / (1 - beta1**step), math.sqrt(1 - beta2**step)


def update_moments(gradient: Tensor, first: Tensor, second: Tensor, group: Mapping[str, Any]) -> None:
    """Takes a gradient into both moments, in place."""
    beta1, beta2 = group["betas"]
    first.add_((gradient - first).mul_(1 - beta1))
    second.mul_(beta2).add_((gradient * (1 - beta2)).mul_(gradient))


def proposed_update(weights: Tensor, first: Tensor, second: Tensor, group: Mapping[str, Any], step: int) -> Tensor:
    r"""What AdamW would add to the weights, weight decay included.

    .. math:: \Delta = -\eta\lambda\,\theta - \frac{\eta}{1-\beta_1^t}\,\frac{m}{\sqrt{v}/\sqrt{1-\beta_2^t} + \epsilon}

    and for ``adam="algorithm_box"``, the paper's own, :math:`-\eta\lambda\,\theta - \eta\,m / \sqrt{v + \epsilon}`.
    """
    step_size, root2 = coefficients(group, step)
    if group["adam"] == "algorithm_box":
        root = _root(second + group["eps"])
    else:
        root = _root(second).div_(root2).add_(group["eps"])
    return (weights * (-group["lr"] * group["weight_decay"])).add_((first * -step_size).div_(root))


def _root(values: Tensor) -> Tensor:
    """Correctly rounded: torch's own vectorised root of float32 is off by an ulp on some processors."""
    return values.double().sqrt().to(values.dtype)
