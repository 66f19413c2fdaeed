"""Distances between next-token distributions, as pure functions on logits.

Everything is in nats. Computed in float32 (float64 when given float64), summed over the vocabulary in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    r"""How far the distribution of ``q_logits`` is from that of ``p_logits``, exactly, for every token.

    .. math:: KL(p\,\|\,q) = \sum_v p_v (\log p_v - \log q_v)

    Args:
        p_logits: ``(…, vocabulary)``; normalised or not. An entry of -inf is a token that cannot occur.
        q_logits: The same shape.
    Returns:
        ``(…)``, float64, nats, never below 0 and exactly 0 where the logits are equal bit for bit; infinite where
        ``p`` gives weight to a token that cannot occur under ``q``.
    Raises:
        ValueError: The shapes differ.
    Example:
        >>> half, quarter = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> round(token_kl(half, quarter).item(), 6)  # 0.5 ln 2 + 0.5 ln(2/3)
        0.143841
    """
    if p_logits.shape != q_logits.shape:
        raise ValueError(f"logits must have one shape, got {tuple(p_logits.shape)} and {tuple(q_logits.shape)}")
    log_p, log_q = _log_softmax(p_logits), _log_softmax(q_logits)
    p = log_p.exp()
    terms = torch.where(p > 0, p * (log_p - log_q), 0.0)  # 0 log 0 = 0, where the product would be NaN
    # Rounding leaves sums of order -1e-8 where p and q nearly agree; the exact value is never negative.
    return terms.sum(-1, dtype=torch.float64).clamp(min=0.0)


def entropy(logits: Tensor) -> Tensor:
    r"""How undecided a distribution is, for every token.

    .. math:: H(p) = -\sum_v p_v \log p_v

    Args:
        logits: ``(…, vocabulary)``; normalised or not.
    Returns:
        ``(…)``, float64, nats, from 0 to ln(vocabulary).
    Example:
        >>> round(entropy(torch.zeros(4)).item(), 6)  # ln 4
        1.386294
    """
    log_p = _log_softmax(logits)
    p = log_p.exp()
    return -torch.where(p > 0, p * log_p, 0.0).sum(-1, dtype=torch.float64).clamp(max=0.0)


def _log_softmax(logits: Tensor) -> Tensor:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return torch.log_softmax(logits, dim=-1, dtype=dtype)
