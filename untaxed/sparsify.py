r"""Keeping a fraction of a tensor's entries: at random, by magnitude, or all of them. Knows no name and no model.

Random choices come from a counter. The flat tensor is cut into blocks of 4,096 consecutive entries; block :math:`b` of
the *whole* tensor has a key of its own, mixed from `mask_key` and :math:`b`, and every entry hashes that key with its
place in the block. So any part of a tensor (a shard, say) gives the bits that the whole gives there, in any order, on
any device, and no generator's state is touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

Sparsifier = Literal["random", "magnitude", "none"]
Rescale = Literal["none", "inverse", "l1"]
Reduce = Callable[[Tensor], Tensor]  # sums an integer tensor over the processes that hold the other parts

BLOCK = 4096
WORD = 0xFFFFFFFF
CHUNK = 32 * BLOCK  # entries hashed at once: bounds the temporaries


def mask_key(seed: int, name: str, step: int, use: str = "") -> int:
    """The 64-bit key of one tensor's random choices at one step.

    Args:
        seed: Of the whole training.
        name: The tensor's full name.
        step: Its optimizer step; a constant gives a mask that is drawn once.
        use: Tells several masks of one tensor at one step apart.
    """
    text = f"{seed}\0{name}\0{step}\0{use}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def random_bits(key: int, numel: int, *, offset: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Uniform integers in [0, 2^32), one an entry.

    Args:
        key: From `mask_key`.
        numel: How many entries.
        offset: Place of the first one in the whole flat tensor.
        device: Where the integers are made.
    Returns:
        int64, shape ``(numel,)``.
    """
    made = torch.empty(numel, dtype=torch.int64, device=device)
    for part, bits in _chunks(key, made, offset):
        part.copy_(bits)
    return made


def random_mask(numel: int, density: float, *, key: int, offset: int = 0, device: torch.device | str = "cpu") -> Tensor:
    r"""Keeps each entry with probability ``density``: the Bernoulli mask of DARE.

    Returns:
        bool, shape ``(numel,)``.
    Raises:
        ValueError: ``density`` is outside (0, 1].
    Example:
        >>> whole = random_mask(10_000, 0.3, key=7)
        >>> bool((random_mask(100, 0.3, key=7, offset=5_000) == whole[5_000:5_100]).all())
        True

    Source: Yu et al. 2024 (DARE), arXiv:2311.03099; Lu et al. 2024, arXiv:2405.17931, Eq. 4.
    """
    check_density(density)
    if density == 1:
        return torch.ones(numel, dtype=torch.bool, device=device)
    mask = torch.empty(numel, dtype=torch.bool, device=device)
    for part, bits in _chunks(key, mask, offset):
        torch.lt(bits, keep_below(density), out=part)
    return mask


def magnitude_mask(
    values: Tensor,
    density: float,
    *,
    key: int = 0,
    offset: int = 0,
    total: int | None = None,
    reduce: Reduce | None = None,
) -> Tensor:
    r"""Keeps the largest entries by magnitude: exactly :math:`k = \max(1, \mathrm{round}(density \cdot n))` of them.

    Found by counting, never by sorting: two histograms of 16 bits each give the k-th magnitude to the bit; where more
    entries have it than there is room for, two more of the entries' random bits choose among them, so that neither the
    order of the entries nor their distribution over processes matters.

    Args:
        values: Any shape, finite; the local part where the tensor is sharded.
        density: Fraction kept of the whole tensor, in (0, 1].
        key: From `mask_key`, for ties.
        offset: Place of the first local entry in the whole flat tensor.
        total: Entries of the whole tensor; needed with ``reduce``.
        reduce: Sums counts over the processes that hold the other parts. Every process must call.
    Returns:
        bool, the shape of ``values``.
    Raises:
        ValueError: ``density`` is outside (0, 1].

    Source: Yadav et al. 2023 (TIES), arXiv:2306.01708; Lu et al. 2024, arXiv:2405.17931, Eq. 6.
    Differs: magnitudes are compared in float32; ties go by random bits, where sorting takes whatever comes first.
    """
    check_density(density)
    size = values.numel() if total is None else total
    if density == 1 or size == 0:
        return torch.ones_like(values, dtype=torch.bool)
    flat = values.detach().flatten()
    order = flat.abs().to(torch.float32).view(torch.int32)  # bits of a positive float are in its order
    count = kept_count(size, density)
    limit, missing, ties = _kth_largest(order, count, reduce)
    if missing == ties:
        return (order >= limit).view(values.shape)
    mask, tied = order > limit, order == limit
    drawn, done = torch.empty(int(tied.sum()), dtype=torch.int64, device=flat.device), 0
    for which, bits in _chunks(key, tied, offset):
        found = bits[which]
        drawn[done : done + found.numel()] = found
        done += found.numel()
    choice, _, _ = _kth_largest(drawn, missing, reduce)
    mask[tied] = drawn >= choice
    return mask.view(values.shape)


def sparsify(
    values: Tensor,
    density: float,
    *,
    how: Sparsifier = "random",
    rescale: Rescale = "none",
    key: int = 0,
    offset: int = 0,
    total: int | None = None,
    reduce: Reduce | None = None,
) -> Tensor:
    r"""Sets all but a fraction of the entries to 0.

    .. math:: F(x)_i = r\,x_i \text{ where entry } i \text{ is kept, else } 0

    Args:
        values: Any shape.
        density: Fraction kept, in (0, 1].
        how: "random", "magnitude", or "none" (everything is kept, whatever ``density``).
        rescale: "none": :math:`r = 1`; "inverse": :math:`1/density`, which keeps the mean of a random choice; "l1":
            :math:`\lVert x\rVert_1 / \lVert F(x)\rVert_1`, which keeps the sum of magnitudes.
        key: From `mask_key`.
        offset, total, reduce: For a part of a tensor, as in `magnitude_mask`.
    Returns:
        A new tensor with the shape and dtype of ``values``.
    Raises:
        ValueError: ``density`` is outside (0, 1], or a name is unknown.
    Example:
        >>> sparsify(torch.tensor([3.0, -4.0, 1.0, 2.0]), 0.5, how="magnitude")
        tensor([ 3., -4.,  0.,  0.])
    """
    if how == "none":
        return values.clone()
    if how == "random":
        mask = random_mask(values.numel(), density, key=key, offset=offset, device=values.device).view(values.shape)
    elif how == "magnitude":
        mask = magnitude_mask(values, density, key=key, offset=offset, total=total, reduce=reduce)
    else:
        raise ValueError(f"how must be random, magnitude or none, got {how!r}")
    return rescaled(values, mask, density, rescale, reduce)


def rescaled(values: Tensor, mask: Tensor, density: float, rescale: Rescale, reduce: Reduce | None = None) -> Tensor:
    """The kept entries, rescaled as `sparsify` says; the others 0."""
    kept = torch.where(mask, values, torch.zeros_like(values))
    if rescale == "none":
        return kept
    if rescale == "inverse":
        return kept * (1 / density)
    if rescale != "l1":
        raise ValueError(f"rescale must be none, inverse or l1, got {rescale!r}")
    sums = torch.stack([values.abs().sum(dtype=torch.float64), kept.abs().sum(dtype=torch.float64)])
    whole, part = (reduce(sums) if reduce else sums).tolist()
    return kept * (whole / part) if part else kept


def check_density(density: float) -> None:
    """Raises `ValueError` for a density that keeps nothing, or more than everything."""
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], got {density}")


def kept_count(size: int, density: float) -> int:
    """How many of ``size`` entries a choice by magnitude keeps: at least one."""
    return max(1, round(density * size))


def keep_below(density: float) -> int:
    """Random bits below this keep their entry."""
    return max(1, round(density * (WORD + 1)))


def _chunks(key: int, values: Tensor, offset: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A flat tensor part by part, and the random bits of each part's entries.

    Whoever gathers results writes them into memory made before: small tensors that stay, made between large ones that
    go, would keep malloc from giving the latter's memory back.
    """
    for start in range(0, values.numel(), CHUNK):
        part = values[start : start + CHUNK]
        yield part, _bits(key, offset + start, part.numel(), values.device)


def _kth_largest(order: Tensor, count: int, reduce: Reduce | None) -> tuple[int, int, int]:
    """The ``count``-th largest of integers below 2^32; how many of its equals are among the largest, and in all."""
    high, above = _place(_histogram(order, None), count, reduce)
    counts = _histogram(order, high)
    counts = reduce(counts) if reduce else counts
    low, more = _place(counts, count - above, None)
    return (high << 16) | low, count - above - more, int(counts[low])


def _histogram(order: Tensor, high: int | None) -> Tensor:
    """How often each upper half of the integers occurs; with ``high`` each lower half beside this upper one."""
    counts = torch.zeros(1 << 16, dtype=torch.int64, device=order.device)
    for part in order.split(CHUNK):
        found = part >> 16 if high is None else part[(part >> 16) == high] & 0xFFFF
        counts += torch.bincount(found, minlength=1 << 16)
    return counts


def _place(counts: Tensor, count: int, reduce: Reduce | None) -> tuple[int, int]:
    """The bin in which the ``count``-th from above lies, and how many lie in the bins above it."""
    counts = reduce(counts) if reduce else counts
    from_above = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_above, count))
    above = int(from_above[place - 1]) if place else 0
    return counts.numel() - 1 - place, above


def _bits(key: int, start: int, numel: int, device: torch.device) -> Tensor:
    """`random_bits` of at most `CHUNK` entries."""
    first, last = start // BLOCK, (start + numel - 1) // BLOCK
    block = _mix(key + torch.arange(first, last + 1, device=device) * _signed(0x9E3779B97F4A7C15))
    place = torch.arange(BLOCK, device=device)
    bits = ((block & WORD)[:, None] + place * 0x9E3779B1) & WORD  # (blocks, 4096)
    bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & WORD
    bits = bits ^ ((block >> 32) & WORD)[:, None]
    bits = ((bits ^ (bits >> 15)) * 0x846CA68B) & WORD
    bits = bits ^ (bits >> 16)
    skipped = start - first * BLOCK
    return bits.flatten()[skipped : skipped + numel]


def _mix(word: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al. 2014), in the wrapping arithmetic of int64."""
    word = (word ^ _shift(word, 30)) * _signed(0xBF58476D1CE4E5B9)
    word = (word ^ _shift(word, 27)) * _signed(0x94D049BB133111EB)
    return word ^ _shift(word, 31)


def _shift(word: Tensor, places: int) -> Tensor:
    """A logical shift to the right, where torch has the arithmetic one only."""
    return (word >> places) & ((1 << (64 - places)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word
