r"""Random bits from a counter: the same for an entry whatever else is drawn, in any order, on any device.

The flat tensor is cut into blocks of 4,096 consecutive entries; block :math:`b` of the *whole* tensor has a key of its
own, mixed from `mask_key` and :math:`b`, and every entry hashes that key with its place in the block. So any part of a
tensor (a shard, say) gives the bits that the whole gives there, and no generator's state is touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 4096
WORD = 0xFFFFFFFF
CHUNK = 32 * BLOCK  # entries hashed at once: bounds the temporaries, which stay in the cache


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
    for part, bits in chunks(key, made, offset):
        part.copy_(bits).bitwise_and_(WORD)
    return made


def draw_below(limit: int, key: int, made: Tensor, *, offset: int = 0) -> Tensor:
    """Writes for each entry whether its random bits are below a limit in [1, 2^32] into a flat tensor."""
    for part, bits in chunks(key, made, offset):
        torch.le(bits.bitwise_xor_(-(1 << 31)), limit - 1 - (1 << 31), out=part)  # so signed integers compare as bits
    return made


def chunks(key: int, values: Tensor, offset: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A flat tensor part by part, and the random bits of each part's entries: int32, all 32 of them.

    Whoever gathers results writes them into memory made before: small tensors that stay, made between large ones that
    go, would keep malloc from giving the latter's memory back.
    """
    for start in range(0, values.numel(), CHUNK):
        part = values[start : start + CHUNK]
        yield part, _bits(key, offset + start, part.numel(), values.device)


def bits_at(key: int, places: Tensor) -> Tensor:
    """The random bits of some entries alone.

    Args:
        key: From `mask_key`.
        places: Theirs in the whole flat tensor, ascending: int64.
    Returns:
        As `random_bits` has them: int64, in [0, 2^32).
    """
    if not places.numel():
        return places.clone()
    first, last = int(places[0]) // BLOCK, int(places[-1]) // BLOCK
    keys = _block_keys(key, first, last, places.device)
    inside = places - first * BLOCK
    if last - first < 1 << 18:
        inside = inside.to(torch.int32)
    block, place = inside >> 12, (inside & (BLOCK - 1)).to(torch.int32).mul_(0x9E3779B1 - (1 << 32))
    high = (keys >> 32).to(torch.int32).index_select(0, block)
    bits = place.add_(keys.to(torch.int32).index_select(0, block))
    return _hashed(bits, high).to(torch.int64).bitwise_and_(WORD)


def _bits(key: int, start: int, numel: int, device: torch.device) -> Tensor:
    """The bits of at most `CHUNK` entries, in the wrapping arithmetic of int32."""
    first, last = start // BLOCK, (start + numel - 1) // BLOCK
    block = _block_keys(key, first, last, device)[:, None]
    place = (torch.arange(BLOCK, device=device) * 0x9E3779B1).to(torch.int32)
    bits = _hashed(block.to(torch.int32) + place, (block >> 32).to(torch.int32))  # (blocks, 4096)
    skipped = start - first * BLOCK
    return bits.flatten()[skipped : skipped + numel]


def _block_keys(key: int, first: int, last: int, device: torch.device) -> Tensor:
    """Of the blocks from the first to the last one: int64."""
    return _mix(key + torch.arange(first, last + 1, device=device) * _signed(0x9E3779B97F4A7C15))


def _hashed(bits: Tensor, high: Tensor) -> Tensor:
    """In place: the lower half of a block's key plus the place, and the upper half, stirred; int32."""
    spare = torch.empty_like(bits)
    _fold(bits, 16, spare).mul_(0x7FEB352D).bitwise_xor_(high)
    _fold(bits, 15, spare).mul_(0x846CA68B - (1 << 32))
    return _fold(bits, 16, spare)


def _fold(bits: Tensor, places: int, spare: Tensor) -> Tensor:
    """In place: the bits, and over them the same ones shifted to the right."""
    torch.bitwise_right_shift(bits, places, out=spare).bitwise_and_((1 << (32 - places)) - 1)
    return bits.bitwise_xor_(spare)


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
