"""Every merge beside its slow twin from the papers' formulas."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from table_of_rules import tensors
from torch import Tensor

from untaxed.counter import mask_key
from untaxed.merging import dare, extrapolate, linear, model_stock, slerp, task_arithmetic, ties, warp
from untaxed.sparsify import random_mask

sys.path.insert(0, str(Path(__file__).parents[1] / "reference"))
import merges as slow

SHAPE = st.lists(st.integers(1, 6), max_size=3)
SEED = st.integers(0, 10_000)
WEIGHTS = st.lists(st.floats(0.1, 2.0), min_size=1, max_size=4)
many = settings(max_examples=60, deadline=None)


def drawn(count: int, shape: list[int], seed: int) -> tuple[list[Tensor], Tensor]:
    base, *moves = tensors(count + 1, shape, seed)
    return [base + move for move in moves], base


def close(fast: Tensor, plain: Tensor) -> bool:
    return torch.allclose(fast.double(), plain, atol=1e-5, rtol=1e-5)


@given(SHAPE, SEED, WEIGHTS, st.booleans())
@many
def test_linear(shape: list[int], seed: int, weights: list[float], normalize: bool) -> None:
    models, _ = drawn(len(weights), shape, seed)
    assert close(linear(models, weights=weights, normalize=normalize), slow.linear(models, weights, normalize))


@given(SHAPE, SEED, st.lists(st.floats(-1, 2), min_size=1, max_size=4), st.floats(-1, 2))
@many
def test_task_arithmetic(shape: list[int], seed: int, weights: list[float], scale: float) -> None:
    models, base = drawn(len(weights), shape, seed)
    fast = task_arithmetic(models, base, weights=weights, scale=scale)
    assert close(fast, slow.task_arithmetic(models, base, weights, scale))


@given(SHAPE, SEED, st.floats(-3, 0))
@many
def test_extrapolation(shape: list[int], seed: int, share: float) -> None:
    [aligned], initial = drawn(1, shape, seed)
    # ExPO: aligned + alpha (aligned - initial)
    expected = aligned.double() - share * (aligned.double() - initial.double())
    assert close(extrapolate(initial, aligned, initial_share=share), expected)


@given(SHAPE, SEED, WEIGHTS)
@many
def test_slerp_and_warp(shape: list[int], seed: int, weights: list[float]) -> None:
    shape = [*shape, 5]  # of one entry all directions are parallel or opposite
    models, base = drawn(len(weights), shape, seed)
    assert close(slerp(models, weights=weights), slow.slerp(models, weights))
    assert close(slerp(models, base, weights=weights), slow.warp(models, base, weights, 0.0))
    assert close(warp(models, base, weights=weights, initial_share=0.6), slow.warp(models, base, weights, 0.6))


@given(SHAPE, SEED, st.integers(2, 5))
@many
def test_model_stock(shape: list[int], seed: int, count: int) -> None:
    models, base = drawn(count, shape, seed)
    assert close(model_stock(models, base), slow.model_stock(models, base))


@given(SHAPE, SEED, WEIGHTS, st.floats(0.01, 1), st.booleans(), st.floats(0.1, 2))
@many
def test_ties(shape: list[int], seed: int, weights: list[float], density: float, normalize: bool, scale: float) -> None:
    models, base = drawn(len(weights), shape, seed)
    densities = [density, *[0.6] * (len(weights) - 1)]
    fast = ties(models, base, density=densities, weights=weights, normalize=normalize, scale=scale)
    models = [base + (model - base) for model in models]
    assert close(fast, slow.ties(models, base, weights, densities, normalize, scale))


def test_ties_with_negative_weights() -> None:
    models, base = drawn(3, [40], 0)
    for normalize in (False, True):
        fast = ties(models, base, density=0.5, weights=[1, -0.5, -1], normalize=normalize)
        assert close(fast, slow.ties(models, base, [1, -0.5, -1], [0.5] * 3, normalize))
        alone = ties(models[:1], base, density=0.5, weights=[-0.5], normalize=normalize)
        assert close(alone, slow.ties(models[:1], base, [-0.5], [0.5], normalize))


@pytest.mark.parametrize("consensus", ["sum", "sign"])
@pytest.mark.parametrize("rescale", ["inverse", "l1", "none"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_dare(consensus: Any, rescale: Any, normalize: bool, count: int) -> None:
    models, base = drawn(count, [40, 5], 3)
    weights, densities = [1.0, 0.5, 2.0][:count], [0.5, 0.3, 1.0][:count]
    fast = dare(
        models,
        base,
        density=densities,
        weights=weights,
        consensus=consensus,
        rescale=rescale,
        normalize=normalize,
        seed=4,
        name="layer.weight",
    )
    masks = [
        random_mask(200, density, key=mask_key(4, "layer.weight", 0, f"dare {k}")).view(40, 5)
        for k, density in enumerate(densities)
    ]
    plain = slow.dare(models, base, weights, masks, densities, consensus, rescale, normalize)
    assert close(fast, plain)
