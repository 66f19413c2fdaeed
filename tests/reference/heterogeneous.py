"""Slow, plain twins of the ratios' mathematics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def projection(values: Sequence[float], share: float, weights: Sequence[float], low: float, high: float) -> list[float]:
    """Bisection on the multiplier of the mean: the clipped values' mean falls as it grows."""
    total = sum(weights)
    w = [weight / total for weight in weights]

    def clipped(tau: float) -> list[float]:
        return [min(high, max(low, v - tau * x)) for v, x in zip(values, w)]

    reach = (max(map(abs, values)) + 2) / min(w)
    below, above = -reach, reach
    for _ in range(200):
        middle = (below + above) / 2
        if sum(x * y for x, y in zip(w, clipped(middle))) > share:
            below = middle
        else:
            above = middle
    return clipped((below + above) / 2)


def merged_loss(
    model: nn.Module,
    initial: Mapping[str, Tensor],
    aligned: Mapping[str, Tensor],
    ratio_of: Mapping[str, int],
    ratios: Tensor,
    rest: Tensor,
    ids: Tensor,
    counted: Tensor,
) -> Tensor:
    """The mean negative log-likelihood under merged copies that autograd follows: -1/N sum log pi(a|x).

    Args:
        ratio_of: Which ratio acts on a tensor; the others get `rest`.
        counted: ``(rows, length)``, 1 where a token of the response stands.
    """
    weights = {}
    for name, end in aligned.items():
        share = ratios[ratio_of[name]] if name in ratio_of else rest
        weights[name] = share * initial[name] + (1 - share) * end
    logits = torch.func.functional_call(model, weights, (ids,)).logits
    total, count = torch.zeros((), dtype=logits.dtype), 0
    for row in range(ids.shape[0]):
        for at in range(1, ids.shape[1]):
            if counted[row, at]:
                total = total - torch.log_softmax(logits[row, at - 1], dim=-1)[ids[row, at]]
                count += 1
    return total / count
