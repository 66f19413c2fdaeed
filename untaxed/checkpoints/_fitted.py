"""A parent under another's names and numbers of rows, so that all parents of a merge have the same tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from ._source import Kind, Source


class FittedSource(Source):
    """A source whose tensors are cut, or filled up with another's entries.

    Rows are the first dimension and lie one behind the other, so that cutting and filling rows is cutting and filling
    the flat tensor.

    Args:
        source: Read where it has entries.
        leader: Read behind them.
        kinds: The tensors that there are: of `source`'s dtypes, and any number of rows.
        theirs: Tensors that are `leader`'s altogether.
    """

    def __init__(self, source: Source, leader: Source, kinds: Mapping[str, Kind], theirs: Collection[str] = ()) -> None:
        self.label, self.path, self.tokenizer = source.label, source.path, source.tokenizer
        self.directories, self.config = source.directories, source.config
        self.kinds = kinds
        self._source, self._leader, self._theirs = source, leader, theirs

    @property
    def nbytes_beside(self) -> int:
        return self._source.nbytes_beside

    @property
    def held_bytes(self) -> int:
        return self._source.held_bytes

    def tied_to(self, name: str) -> str | None:
        return None if name in self.kinds else self._source.tied_to(name)

    def block(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return self._joined("block", name, start, stop)

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return self._joined("stored", name, start, stop)

    def _joined(self, how: str, name: str, start: int, stop: int | None) -> Tensor:
        start, stop, _ = slice(start, stop).indices(self.kind(name).numel)
        end = 0 if name in self._theirs else self._source.kind(name).numel
        own = getattr(self._source, how)(name, start, min(stop, end)) if start < end else None
        if own is not None and stop <= end:
            return own
        rest = getattr(self._leader, how)(name, max(start, end), stop)
        return rest if own is None else torch.cat([own, rest.to(own.dtype)])
