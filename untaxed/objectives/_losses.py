"""What a token costs, as pure functions of logits that gradients flow through: computed in float32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..weights import wide


def negative_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    r"""How surprised a model is by every token.

    .. math:: -\log p(x_t)

    Args:
        logits: ``(places, vocabulary)``.
        targets: ``(places,)``, the tokens that came.
    Returns:
        ``(places,)``, nats.
    Example:
        >>> round(negative_log_likelihood(torch.zeros(1, 4), torch.tensor([2])).item(), 6)  # ln 4
        1.386294
    """
    return cross_entropy(logits.to(wide(logits.dtype)), targets, reduction="none")


def forward_kl(logits: Tensor, initial_logits: Tensor) -> Tensor:
    r"""KL(initial ‖ policy) at every token, exact over the vocabulary: what the policy drops costs most.

    .. math:: \sum_v p_v (\log p_v - \log q_v), \qquad p: initial,\ q: policy

    Args:
        logits: The policy's, ``(places, vocabulary)``.
        initial_logits: The same shape. An entry of -inf is a token that cannot occur.
    Returns:
        ``(places,)``, nats; the gradient with respect to the policy's logits is :math:`q - p`.
    Example:
        >>> half, quarter = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> round(forward_kl(quarter, half).item(), 6)  # 0.5 ln 2 + 0.5 ln(2/3)
        0.143841
    """
    return _kl(initial_logits, logits)


def reverse_kl(logits: Tensor, initial_logits: Tensor) -> Tensor:
    r"""KL(policy ‖ initial) at every token, exact over the vocabulary: what initial would not write costs most.

    .. math:: \sum_v q_v (\log q_v - \log p_v), \qquad p: initial,\ q: policy

    Args:
        logits: The policy's, ``(places, vocabulary)``.
        initial_logits: The same shape.
    Returns:
        ``(places,)``, nats.
    Example:
        >>> half, quarter = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> round(reverse_kl(quarter, half).item(), 6)  # 0.25 ln 0.5 + 0.75 ln 1.5
        0.130812
    """
    return _kl(logits, initial_logits)


def distillation(logits: Tensor, initial_logits: Tensor, *, temperature: float) -> Tensor:
    r"""Forward KL between softened distributions, times the square of the temperature.

    .. math:: T^2\, KL(\mathrm{softmax}(z_{initial} / T)\,\|\,\mathrm{softmax}(z_{policy} / T))

    :math:`T^2` keeps the gradient's size, which falls with :math:`1/T^2`. It has the gradient of the cross-entropy
    with initial's softened distribution, and is 0 where both agree. At :math:`T = 1` it is `forward_kl`; for large
    :math:`T` it tends to half the variance over the vocabulary of the difference of logits.

    Args:
        logits: The policy's, ``(places, vocabulary)``.
        initial_logits: The same shape.
        temperature: :math:`T`, above 0.
    Returns:
        ``(places,)``, nats times :math:`T^2`.

    Source: Hinton et al. 2015, arXiv:1503.02531; Li & Hoiem 2016 (LwF), arXiv:1606.09282.
    """
    softened = (one.to(wide(one.dtype)) / temperature for one in (initial_logits, logits))
    return temperature**2 * _kl(*softened)


def _kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """`divergence.token_kl` for training: no bound at 0, where a gradient would stop."""
    log_p, log_q = (torch.log_softmax(logits.to(wide(logits.dtype)), dim=-1) for logits in (p_logits, q_logits))
    p = log_p.exp()
    possible = p > 0
    # where p is 0 the term is 0: neither its value nor its gradient may see the infinity of log p
    ratio = torch.where(possible, log_p, 0.0) - torch.where(possible, log_q, 0.0)
    return (p * ratio).sum(-1)
