"""Masks: the same bits for a whole and for its parts, the promised number kept, no state of a generator touched."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from untaxed.counter import BLOCK, mask_key, random_bits
from untaxed.sparsify import check_density, kept_count, magnitude_mask, random_mask, sparsify

DENSITIES = st.sampled_from([1e-5, 1e-3, 0.05, 0.3, 0.5, 0.999, 1.0])


@given(numel=st.integers(0, 3 * BLOCK), start=st.integers(0, 2 * BLOCK), density=DENSITIES)
@settings(max_examples=60, deadline=None)
def test_a_part_has_the_mask_that_the_whole_has_there(numel: int, start: int, density: float) -> None:
    key = mask_key(0, "layer.weight", 3)
    whole = random_mask(5 * BLOCK, density, key=key)
    assert torch.equal(random_mask(numel, density, key=key, offset=start), whole[start : start + numel])


def test_bits_are_those_of_the_integer_arithmetic_written_out() -> None:
    """Worked by hand in Python's own integers, for an entry in the third block."""
    key, index = mask_key(1, "w", 2, "update"), 2 * BLOCK + 77
    mask64, mask32 = (1 << 64) - 1, (1 << 32) - 1
    word = (key + (index // BLOCK) * 0x9E3779B97F4A7C15) & mask64
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & mask64
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask64
    word ^= word >> 31
    bits = ((word & mask32) + (index % BLOCK) * 0x9E3779B1) & mask32
    bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & mask32
    bits ^= word >> 32
    bits = ((bits ^ (bits >> 15)) * 0x846CA68B) & mask32
    bits ^= bits >> 16
    assert random_bits(key, 1, offset=index).item() == bits


@pytest.mark.parametrize("density", [0.001, 0.05, 0.5])
def test_random_masks_keep_their_share_and_do_not_depend_on_each_other(density: float) -> None:
    n = 1 << 20
    first, second = (random_mask(n, density, key=mask_key(0, "w", step)).double() for step in (1, 2))
    noise = 5 * (density * (1 - density) / n) ** 0.5
    assert abs(first.mean() - density) < noise
    for other in (second, first.roll(1), first.roll(BLOCK), random_mask(n, density, key=mask_key(0, "v", 1))):
        assert abs((first * other).mean() - density**2) < 5 * density / n**0.5


def test_random_bits_spread_evenly_in_every_byte() -> None:
    """Chi-square of 256 bins of each byte; 1e-6 of it lies above 366."""
    bits = random_bits(mask_key(0, "w", 1), 1 << 20)
    for shift in (0, 8, 16, 24):
        counts = torch.bincount((bits >> shift) & 0xFF, minlength=256).double()
        expected = counts.sum() / 256
        assert ((counts - expected) ** 2 / expected).sum() < 366


def test_masks_leave_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    random_mask(100, 0.5, key=1)
    sparsify(torch.ones(100), 0.5, how="magnitude")
    assert torch.equal(before, torch.random.get_rng_state())


@given(
    shape=st.sampled_from([(), (1,), (0,), (7,), (3, 5), (4, 0, 2), (64, 33)]), density=DENSITIES, ties=st.booleans()
)
@settings(max_examples=80, deadline=None)
def test_magnitude_keeps_exactly_the_largest(shape: tuple[int, ...], density: float, ties: bool) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = values.sign() if ties else values
    mask = magnitude_mask(values, density, key=9)
    assert mask.shape == values.shape
    if values.numel() == 0:
        return
    assert mask.sum() == kept_count(values.numel(), density) >= 1
    if not mask.all():
        assert values[mask].abs().min() >= values[~mask].abs().max()


def test_ties_are_broken_by_the_entries_random_bits_not_by_their_order() -> None:
    values = torch.ones(10_000)
    mask, other = (magnitude_mask(values, 0.05, key=key) for key in (1, 2))
    assert mask.sum() == other.sum() == 500
    assert not torch.equal(mask, other)
    assert 150 < mask[:5_000].sum() < 350


def test_a_sharded_choice_by_magnitude_is_that_of_the_whole() -> None:
    """Two parts of uneven size, their counts added as an all-reduce adds them."""
    from threading import Barrier, Thread

    values = torch.randn(9_000, generator=torch.Generator().manual_seed(1)).round(decimals=1)  # many ties
    parts = [values[:5_000], values[5_000:]]
    barrier, box, masks = Barrier(2), {}, {}

    def work(rank: int) -> None:
        def reduce(counts: torch.Tensor) -> torch.Tensor:
            box[rank] = counts
            barrier.wait()
            total = box[0] + box[1]
            barrier.wait()
            return total

        masks[rank] = magnitude_mask(parts[rank], 0.03, key=4, offset=5_000 * rank, total=9_000, reduce=reduce)

    threads = [Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.cat([masks[0], masks[1]]), magnitude_mask(values, 0.03, key=4))


def test_more_entries_than_a_float_can_count() -> None:
    """2^24 + 1 entries: where torch.quantile gives up."""
    values = torch.zeros((1 << 24) + 1)
    values[-1], values[17] = 2.0, -3.0
    assert magnitude_mask(values, 1e-7).nonzero().flatten().tolist() == [17, (1 << 24)]
    assert random_mask((1 << 24) + 1, 0.5, key=0)[-BLOCK:].any()


@pytest.mark.parametrize("how", ["random", "magnitude", "none"])
def test_at_density_one_nothing_changes(how: str) -> None:
    values = torch.randn(50)
    for rescale in ("none", "inverse", "l1"):
        assert torch.equal(sparsify(values, 1.0, how=how, rescale=rescale), values)


def test_rescaling_keeps_the_mean_or_the_sum_of_magnitudes() -> None:
    values = torch.rand(1 << 18) + 1
    inverse = sparsify(values, 0.25, rescale="inverse", key=3)
    assert inverse.mean() == pytest.approx(values.mean().item(), rel=0.02)
    assert set((inverse / values).unique().tolist()) == {0.0, 4.0}
    l1 = sparsify(values, 0.25, rescale="l1", key=3)
    assert l1.abs().sum() == pytest.approx(values.abs().sum().item(), rel=1e-5)


def test_inputs_are_not_written_to_and_dtypes_stay() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        values = torch.randn(20, dtype=dtype)
        before = values.clone()
        for how in ("random", "magnitude", "none"):
            assert sparsify(values, 0.5, how=how).dtype == dtype
        assert torch.equal(values, before)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan"), float("inf")])
def test_densities_out_of_range_are_refused(density: float) -> None:
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
        check_density(density)
    with pytest.raises(ValueError, match="density"):
        random_mask(3, density, key=0)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="how must be"):
        sparsify(torch.ones(3), 0.5, how="top")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rescale must be"):
        sparsify(torch.ones(3), 0.5, rescale="mean")  # type: ignore[arg-type]
