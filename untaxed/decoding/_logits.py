"""Logits between those of two models, as a pure function."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_fraction
from ..weights import wide

BEYOND = "; logits beyond initial or aligned are not offered here"


def check_share(initial_share: float) -> None:
    """Raises `ValueError` unless it is a number in [0, 1]."""
    check_fraction("initial_share", initial_share, beyond=BEYOND)


def mix_logits(initial: Tensor, aligned: Tensor, *, initial_share: float) -> Tensor:
    r"""The logits between those of two models.

    .. math:: h = s\,h_{initial} + (1 - s)\,h_{aligned}, \qquad
        p \propto p_{initial}^{\,s}\; p_{aligned}^{\,1 - s}

    Args:
        initial: ``(…, vocabulary)``, normalised or not. An entry of -inf is a token that cannot occur.
        aligned: The same shape.
        initial_share: :math:`s`, in [0, 1]; 0 gives ``aligned`` bit for bit, 1 gives ``initial``.
    Returns:
        The same shape, in the wider of both precisions, float32 at least; -inf where either model has it.
    Raises:
        ValueError: The shapes differ, or ``initial_share`` is no number in [0, 1].
    Example:
        >>> mix_logits(torch.tensor([0.0, 4.0]), torch.tensor([2.0, 0.0]), initial_share=0.25)
        tensor([1.5000, 1.0000])

    Source: Liu et al. 2024 (DeRa), arXiv:2402.02992, where :math:`\lambda = 1 - s`: an approximation, token by token,
        of a model aligned with the KL coefficient :math:`\beta/\lambda`. Proxy-tuning (Liu et al. 2024,
        arXiv:2401.08565) adds a difference of logits of other models in the same way.
    Differs: s is not below 0, the paper's :math:`\lambda` above 1.
    """
    check_share(initial_share)
    if initial.shape != aligned.shape:
        raise ValueError(f"logits must have one shape, got {tuple(initial.shape)} and {tuple(aligned.shape)}")
    if initial_share in (0, 1):
        return initial if initial_share else aligned
    precision = wide(torch.promote_types(initial.dtype, aligned.dtype))
    start, end = initial.to(precision), aligned.to(precision)
    mixed = initial_share * start + (1 - initial_share) * end
    return torch.where(start == end, end, mixed)  # what is equal stays so to the bit
