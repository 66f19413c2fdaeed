"""Where every tensor of a checkpoint will lie, decided before anything is written."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from ._check import INDEX as INDEX
from ._check import SINGLE
from ._lazy import DTYPES
from ._source import Kind

CODES = {getattr(torch, name): code for code, name in DTYPES.items() if hasattr(torch, name)}
# as safetensors orders a file's tensors: wide ones first, so that all are aligned
ORDER = (
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E8M0", "F8_E4M3", "F8_E5M2",
    "I8", "U8", "BOOL",
)  # fmt: skip
SHARD_BYTES = 5 * 10**9


class Shard(NamedTuple):
    """One file: its name, its header, the first byte of every tensor, and its size."""

    file: str
    header: bytes
    starts: dict[str, int]
    nbytes: int


def layout(
    entries: Mapping[str, tuple[torch.dtype, Sequence[int]]],
    *,
    shard_bytes: int = SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> list[Shard]:
    """Divides tensors over files: in the given order over shards, and by dtype and name within one, as safetensors.

    Args:
        entries: Dtype and shape by name.
        shard_bytes: Most bytes of tensors a file; a larger tensor gets a file of its own.
        metadata: Text for the headers, beside ``format: pt``.
    Raises:
        ValueError: There are no tensors, or `shard_bytes` is not positive.
    """
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be at least 1, got {shard_bytes}")
    if not entries:
        raise ValueError("a checkpoint needs at least one tensor")
    groups = list(_groups({name: Kind(dtype, tuple(shape)) for name, (dtype, shape) in entries.items()}, shard_bytes))
    names = [SINGLE]
    if len(groups) > 1:
        names = [f"model-{number:05}-of-{len(groups):05}.safetensors" for number in range(1, len(groups) + 1)]
    text = {"format": "pt", **dict(sorted((metadata or {}).items()))}
    return [_shard(file, group, text) for file, group in zip(names, groups, strict=True)]


def index(shards: Sequence[Shard], total_bytes: int) -> str:
    """The text of model.safetensors.index.json."""
    places = {name: shard.file for shard in shards for name in shard.starts}
    content = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(places.items()))}
    return json.dumps(content, indent=2) + "\n"


def _groups(kinds: Mapping[str, Kind], most: int) -> Iterator[dict[str, Kind]]:
    group: dict[str, Kind] = {}
    size = 0
    for name, kind in kinds.items():
        if group and size + kind.nbytes > most:
            yield group
            group, size = {}, 0
        group[name] = kind
        size += kind.nbytes
    yield group


def _shard(file: str, kinds: Mapping[str, Kind], metadata: Mapping[str, str]) -> Shard:
    header: dict[str, object] = {"__metadata__": metadata}
    starts: dict[str, int] = {}
    at = 0
    for name in sorted(kinds, key=lambda name: (ORDER.index(CODES[kinds[name].dtype]), name)):
        kind = kinds[name]
        header[name] = {
            "dtype": CODES[kind.dtype],
            "shape": list(kind.shape),
            "data_offsets": [at, at + kind.nbytes],
        }
        starts[name], at = at, at + kind.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned
    begin = 8 + len(text)
    return Shard(file, struct.pack("<Q", len(text)) + text, {n: begin + s for n, s in starts.items()}, begin + at)
