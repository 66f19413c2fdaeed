"""A directory's tensors, read block by block from its safetensors files."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from ._finite import finite
from ._lazy import LazyWeights
from ._source import Kind, Source


class FileSource(Source):
    """A model directory. Blocks are read into fresh memory, not mapped: a file that is cut short or a disk that fails
    while a merge runs is an error with a name then, and not the end of the process.

    Args:
        path: The directory.
        label: What messages call it; its path unless given.
        allow_nonfinite: Whether `block` passes NaN and infinity on.
    """

    def __init__(self, path: str | Path, *, label: str | None = None, allow_nonfinite: bool = False) -> None:
        weights = LazyWeights(path)
        self.label = label or str(path)
        self.path = self.tokenizer = Path(path)
        self.directories: tuple[Path, ...] = (self.path,)
        self.config = weights.config
        self.allow_nonfinite = allow_nonfinite
        self._ties = weights.tied_to
        self._entries = weights.entries
        self.kinds = {name: Kind(_known(name, weights), entry.shape) for name, entry in weights.entries.items()}
        self._handles = {file: _opened(file) for file in {entry.file for entry in weights.entries.values()}}
        weakref.finalize(self, _close, tuple(self._handles.values()))

    def tied_to(self, name: str) -> str | None:
        return self._ties(name)

    def block(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        kind = self.kind(name)
        if not kind.dtype.is_floating_point:
            raise CheckpointError(f"{name!r} of {self.label} holds {kind.dtype}, which is copied and not merged")
        part = self.stored(name, start, stop)
        part = widened(part)
        if not self.allow_nonfinite:
            check_block(part, name, self.label)
        return part

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        kind = self.kind(name)
        entry = self._entries[name if name in self._entries else str(self.tied_to(name))]
        start, stop, _ = slice(start, stop).indices(kind.numel)
        size = kind.dtype.itemsize
        data = torch.empty(max(0, stop - start) * size, dtype=torch.uint8)
        _read_into(data, self._handles[entry.file], entry.start + start * size, entry.file)
        return data.view(kind.dtype)


def widened(part: Tensor) -> Tensor:
    """In float32, or in float64 if it is that already: the dtypes that merges calculate in."""
    return part if part.dtype == torch.float64 else part.float()


def check_block(part: Tensor, name: str, label: str) -> None:
    """Raises `CheckpointError` where a block holds NaN or infinity; a sum is not finite then, and is one quick pass."""
    if not part.sum().isfinite() and not finite(part):
        raise CheckpointError(
            f"{name!r} of {label} holds NaN or infinity: its training diverged, or the file is damaged; give an "
            "earlier checkpoint or copy it again"
        )


def _known(name: str, weights: LazyWeights) -> torch.dtype:
    dtype = weights.dtypes[name]
    if dtype is None:
        entry = weights.entries[name]
        raise CheckpointError(f"{name!r} in {entry.file} is stored as {entry.dtype}, which this torch does not have")
    return dtype


def _opened(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from None


def _read_into(data: Tensor, handle: int, at: int, file: Path) -> None:
    """Fills the bytes of a tensor from a place in a file."""
    rest = data.numpy().data
    while rest:
        try:
            count = os.preadv(handle, [rest], at)
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from None
        if not count:
            raise CheckpointError(f"{file} was cut short while it was being read; copy or download it again")
        rest, at = rest[count:], at + count


def _close(handles: tuple[int, ...]) -> None:
    for handle in handles:
        os.close(handle)
