"""The header of a safetensors file: where each tensor lies, and enough to find a damaged shard without loading it.

Format: 8 bytes of little-endian length n, n bytes of JSON (name -> dtype, shape, data_offsets), then the data.
"""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CheckpointError

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
MOST = 100_000_000  # bytes of header that the format allows
LARGEST = 1 << 63  # what a tensor's entries are counted with


class Entry(NamedTuple):
    """Where one tensor lies: its file, the format's name of its dtype, its shape, its first byte and the one behind."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(path: Path) -> dict[str, Entry]:
    """Entries by tensor name, after checking that the file's length is what its header says.

    Raises:
        CheckpointError: The file is truncated, longer than it should be, or its header is damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MOST + 1
        if length > min(MOST, size - 8):
            raise _damaged(path, f"its header does not fit into its {size} bytes")
        text = file.read(length)
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        spans = sorted(_span(path, name, entry) for name, entry in entries.items())
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path, "its header is not readable") from error
    end = 0
    for first, last, name in spans:
        if first != end:
            raise _damaged(path, f"tensor {name!r} starts at byte {first}, not {end}")
        end = last
    if 8 + length + end != size:
        raise _damaged(path, f"it has {size} bytes and its header promises {8 + length + end}")
    return {
        name: Entry(path, entry["dtype"], tuple(entry["shape"]), *(8 + length + at for at in entry["data_offsets"]))
        for name, entry in entries.items()
    }


def _span(path: Path, name: str, entry: dict[str, Any]) -> tuple[int, int, str]:
    first, last = entry["data_offsets"]
    if re.search(r"[\ud800-\udfff]", name):
        raise _damaged(path, f"the name {name!r} has half of a character")
    if any(type(number) is not int or number < 0 for number in (first, last, *entry["shape"])):
        raise _damaged(path, f"shape or place of tensor {name!r} is not made of whole numbers")
    if math.prod(max(1, number) for number in entry["shape"]) >= LARGEST:
        raise _damaged(path, f"no tensor has as many entries as the shape of {name!r} says")
    expected = math.prod(entry["shape"]) * BITS[entry["dtype"]]
    if (last - first) * 8 != expected:
        raise _damaged(path, f"tensor {name!r} takes {last - first} bytes and its shape needs {expected // 8}")
    return first, last, name


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is truncated or corrupted: {why}; copy or download it again")
