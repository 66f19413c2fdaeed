"""Every rule with settings that use its parts, for the laws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from untaxed.merging import (
    AverageRule,
    DareRule,
    LinearRule,
    ModelStockRule,
    Rule,
    SlerpRule,
    TaskArithmeticRule,
    TiesRule,
    WarpRule,
)

HALVES, THREE = (0.5, 0.5), (1.0, 0.5, 2.0)
RULES: dict[str, tuple[Rule, int]] = {
    "average": (AverageRule(0.3), 1),
    "linear": (LinearRule(THREE), 3),
    "linear of one": (LinearRule((2.0,)), 1),
    "extrapolating": (LinearRule((1.3, -0.3)), 2),
    "task arithmetic": (TaskArithmeticRule(THREE, scale=0.7), 3),
    "task arithmetic, normalized": (TaskArithmeticRule(THREE, normalize=True), 3),
    "task negation": (TaskArithmeticRule((-0.5,)), 1),
    "slerp": (SlerpRule((0.3, 0.7)), 2),
    "slerp of three": (SlerpRule(THREE), 3),
    "slerp of deltas": (WarpRule(HALVES, initial_share=0.0), 2),
    "warp": (WarpRule(THREE), 3),
    "model stock": (ModelStockRule(3), 3),
    "ties": (TiesRule(THREE, (0.5, 0.2, 0.9)), 3),
    "ties of one": (TiesRule((1.0,), (0.3,)), 1),
    "ties, summed": (TiesRule(HALVES, (0.3, 0.3), normalize=False, scale=1.5), 2),
    "ties of everything": (TiesRule(HALVES, (1.0, 1.0)), 2),
    "dare": (DareRule(THREE, (0.5, 0.2, 0.9)), 3),
    "dare of one": (DareRule((1.0,), (0.3,), seed=1), 1),
    "dare, l1": (DareRule(HALVES, (0.3, 0.8), rescale="l1", scale=0.5), 2),
    "dare ties": (DareRule(THREE, (0.5, 0.5, 1.0), consensus="sign", normalize=True), 3),
}
SUMS_TO_ITSELF = {"linear", "linear of one", "extrapolating", "slerp", "slerp of three"}  # without a base
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = [(), (1,), (0,), (3, 0), (7,), (5, 3), (2, 3, 4)]


def tensors(count: int, shape: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tuple(shape), generator=generator).to(dtype) for _ in range(count)]


def inputs(
    name: str, shape: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Rule, list[Tensor], Tensor | None]:
    """A rule, its models, and its base where it has one; the models lie around the base."""
    rule, count = RULES[name]
    base, *moves = tensors(count + 1, shape, seed)
    models = [(base + 0.3 * move).to(dtype) for move in moves]
    return rule, models, base.to(dtype) if rule.needs_base else None
