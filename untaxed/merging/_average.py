"""Weight averaging: move aligned weights part of the way back to the initial ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..method import Method, Site, Weights, check_fraction
from ..weights import check_same

BEYOND = "; weights beyond initial or aligned are an extrapolation (as in ExPO), another method"


@torch.no_grad()
def average(initial: Weights, aligned: Weights, *, initial_share: float) -> dict[str, Tensor]:
    r"""Moves aligned weights part of the way back to the initial ones.

    .. math:: \theta = s\,\theta_{initial} + (1 - s)\,\theta_{aligned}

    Args:
        initial: Weights before alignment, name -> tensor of any shape.
        aligned: Weights after alignment: the same names and shapes.
        initial_share: :math:`s`, in [0, 1]; 0 gives ``aligned`` bit for bit, 1 gives ``initial``.
    Returns:
        New tensors with ``aligned``'s names, dtypes and devices. Integer and boolean tensors are no weights: they
        are copied from the model with the larger share (from ``aligned`` at one half).
    Raises:
        ValueError: ``initial_share`` is no number in [0, 1], or names or shapes differ.
    Example:
        >>> average({"w": torch.zeros(1)}, {"w": torch.ones(1)}, initial_share=0.25)["w"]
        tensor([0.7500])

    Source: Wortsman et al. 2022 (WiSE-FT), arXiv:2109.01903; Lin et al. 2024, arXiv:2309.06256.
    Differs: computed in float32 (float64 stays float64), cast back once.
    """
    _check_share(initial_share)
    check_same(initial, aligned)
    return {name: _average_one(initial[name], end, initial_share) for name, end in aligned.items()}


def _check_share(initial_share: float) -> None:
    check_fraction("initial_share", initial_share, beyond=BEYOND)


def _average_one(initial: Tensor, aligned: Tensor, share: float) -> Tensor:
    start = initial.to(device=aligned.device)
    if not aligned.is_floating_point() or share in (0, 1):
        return (start if share > 0.5 else aligned).to(aligned.dtype, copy=True)
    wide = torch.promote_types(aligned.dtype, torch.float32)
    # lerp and not the sum of products: it leaves equal tensors unchanged to the bit
    return torch.lerp(aligned.to(wide), start.to(wide), share).to(aligned.dtype)


@dataclass(frozen=True)
class Averaging(Method):
    """Averages the aligned with the initial weights after training.

    Args:
        initial_share: Share of ``initial``, in [0, 1].
    """

    name: ClassVar[str] = "averaging"
    title: ClassVar[str] = "Weight averaging"
    source: ClassVar[str] = "Wortsman et al. 2022, arXiv:2109.01903; Lin et al. 2024, arXiv:2309.06256"
    summary: ClassVar[str] = "one share of the initial model for every tensor, after training; costs no training"
    acts: ClassVar[frozenset[Site]] = frozenset({"after"})

    initial_share: float

    def __post_init__(self) -> None:
        _check_share(self.initial_share)

    def after(self, initial: Weights, aligned: Weights) -> dict[str, Tensor]:
        return average(initial, aligned, initial_share=self.initial_share)
