"""The largest magnitudes, block by block: those that sorting finds, whatever the blocks and however many are equal."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from untaxed import largest as module
from untaxed.counter import BLOCK, bits_at, mask_key, random_bits
from untaxed.largest import Largest


def fed(values: Tensor, count: int, size: int, key: int = 3) -> tuple[Tensor, int]:
    """The mask of a tensor given in blocks, backwards, and the number of passes."""
    found, passes = Largest(count, key=key), 0
    offsets = list(range(0, values.numel(), size))[::-1]
    while True:
        passes += 1
        for offset in offsets:
            found.take(values[offset : offset + size], offset)
        if not found.again():
            break
    masks = [found.mask(values[offset : offset + size], offset) for offset in offsets[::-1]]
    kept = [found.keep_(values[offset : offset + size].clone(), offset) for offset in offsets[::-1]]
    mask = torch.cat(masks)
    assert torch.equal(torch.cat(kept), torch.where(mask, values, 0))
    return mask, passes


@given(
    numel=st.integers(1, 3 * BLOCK),
    size=st.sampled_from([1, 7, 100, BLOCK, 3 * BLOCK]),
    share=st.floats(0, 1),
    levels=st.sampled_from([1, 2, 10, 100, None]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 100),
)
@settings(max_examples=100, deadline=None)
def test_exactly_the_largest(
    numel: int, size: int, share: float, levels: int | None, dtype: torch.dtype, seed: int
) -> None:
    numel = min(numel, 50 * size)
    values = torch.randn(numel, generator=torch.Generator().manual_seed(seed)).to(dtype)
    values = values if levels is None else (values * levels).round() / levels
    count = max(1, round(share * numel))
    mask, passes = fed(values, count, size)
    assert mask.sum() == count
    assert passes <= 4
    if count < numel:
        assert values[mask].abs().min() >= values[~mask].abs().max()
    assert torch.equal(mask, Largest(count, key=3).find(values).mask(values))


def test_among_equals_the_random_bits_decide() -> None:
    values = torch.ones(2 * BLOCK)
    mask, _ = fed(values, 1000, BLOCK)
    bits = random_bits(3, 2 * BLOCK)
    assert torch.equal(mask, bits >= bits.sort(descending=True).values[999])


def test_a_choice_that_is_not_where_it_is_expected_is_found_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.ones(BLOCK * 16)
    expected, passes = fed(values, 20_000, BLOCK)
    assert passes == 3
    monkeypatch.setattr(module, "SPREAD", 0.0)
    again, more = fed(values, 20_000, BLOCK)
    assert torch.equal(again, expected)
    assert more >= passes


def test_few_passes() -> None:
    values = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0))
    assert fed(values, 100, BLOCK)[1] <= 2
    zeros = torch.zeros(BLOCK)
    zeros[:10] = 1
    lazy = Largest(100, zeros=False)
    assert torch.equal(lazy.find(zeros).keep_(zeros.clone()), zeros)


def test_bits_of_single_entries_are_those_of_the_whole() -> None:
    key = mask_key(1, "w", 0)
    places = torch.tensor([0, 5, BLOCK - 1, BLOCK, 3 * BLOCK + 77, 9 * BLOCK])
    assert torch.equal(bits_at(key, places), random_bits(key, 10 * BLOCK)[places])
    assert bits_at(key, places[:0]).shape == (0,)
