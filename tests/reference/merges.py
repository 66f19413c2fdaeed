"""Merges as their papers write them: whole tensors, float64, sorting, loops. Slow and plain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Models = Sequence[Tensor]


def linear(models: Models, weights: Sequence[float], normalize: bool = True) -> Tensor:
    total = sum(w * m.double() for w, m in zip(weights, models))
    return total / sum(weights) if normalize else total


def deltas(models: Models, base: Tensor) -> list[Tensor]:
    return [m.double() - base.double() for m in models]


def task_arithmetic(models: Models, base: Tensor, weights: Sequence[float], scale: float = 1.0) -> Tensor:
    return base.double() + scale * sum(w * d for w, d in zip(weights, deltas(models, base)))


def slerp_two(x: Tensor, y: Tensor, t: float) -> Tensor:
    """WARP, section 3.2."""
    x, y = x.double(), y.double()
    cosine = float((x * y).sum() / (x.norm() * y.norm()))
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if angle < 1e-6:
        return (1 - t) * x + t * y
    return (math.sin((1 - t) * angle) * x + math.sin(t * angle) * y) / math.sin(angle)


def slerp(models: Models, weights: Sequence[float]) -> Tensor:
    """One after the other."""
    result, so_far = models[0].double(), weights[0]
    for model, weight in zip(models[1:], weights[1:]):
        so_far += weight
        result = slerp_two(result, model, weight / so_far)
    return result


def warp(models: Models, initial: Tensor, weights: Sequence[float], initial_share: float) -> Tensor:
    """SLERP of task vectors, then LITI."""
    merged = initial.double() + slerp(deltas(models, initial), weights)
    return initial_share * initial.double() + (1 - initial_share) * merged


def model_stock(models: Models, base: Tensor) -> Tensor:
    found, count = deltas(models, base), len(models)
    cosines = [
        float((found[i] * found[j]).sum() / (found[i].norm() * found[j].norm()))
        for i in range(count)
        for j in range(i + 1, count)
    ]
    mean = max(0.0, sum(cosines) / len(cosines))
    t = count * mean / (1 + (count - 1) * mean)
    return t * sum(m.double() for m in models) / count + (1 - t) * base.double()


def largest(delta: Tensor, density: float) -> Tensor:
    """Its largest entries by magnitude, by sorting; magnitudes must differ."""
    flat = delta.flatten()
    kept = torch.argsort(flat.abs(), descending=True)[: max(1, round(density * flat.numel()))]
    result = torch.zeros_like(flat)
    result[kept] = flat[kept]
    return result.view(delta.shape)


def elect(sparse: Models, weights: Sequence[float], normalize: bool) -> Tensor:
    """TIES, Algorithm 1: elect, then the disjoint mean, entry by entry."""
    result = torch.zeros_like(sparse[0]).flatten()
    for place, entries in enumerate(zip(*(each.flatten().tolist() for each in sparse))):
        weighted = [w * x for w, x in zip(weights, entries)]
        total = sum(weighted)
        agreeing = [k for k, x in enumerate(weighted) if x * total > 0]
        if agreeing:
            divisor = sum(abs(weights[k]) for k in agreeing) if normalize else 1.0
            result[place] = sum(weighted[k] for k in agreeing) / divisor
    return result.view(sparse[0].shape)


def ties(
    models: Models,
    base: Tensor,
    weights: Sequence[float],
    densities: Sequence[float],
    normalize: bool = True,
    scale: float = 1.0,
) -> Tensor:
    sparse = [largest(d, density) for d, density in zip(deltas(models, base), densities)]
    return base.double() + scale * elect(sparse, weights, normalize)


def dare(
    models: Models,
    base: Tensor,
    weights: Sequence[float],
    masks: Models,
    densities: Sequence[float],
    consensus: str = "sum",
    rescale: str = "inverse",
    normalize: bool = False,
) -> Tensor:
    """Drop And REscale: the masks are given."""
    sparse = []
    for delta, mask, density in zip(deltas(models, base), masks, densities):
        kept = delta * mask
        ratio = 1 / density if rescale == "inverse" else float(delta.abs().sum() / kept.abs().sum())
        sparse.append(kept * (1.0 if rescale == "none" else ratio))
    if consensus == "sign":
        return base.double() + elect(sparse, weights, normalize)
    return base.double() + sum(w * d for w, d in zip(weights, sparse)) / (sum(weights) if normalize else 1)
