"""A model as named tensors that are read block by block: what every merge reads its parents through."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError, meant


class Kind(NamedTuple):
    """The dtype and shape of a tensor, without its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class Source(ABC):
    """A model that is read block by block; nothing of a whole tensor's size is ever held. Safe to read from threads.

    Attributes:
        label: The model as the user wrote it.
        path: The directory that its configuration lies in; an adapter's is its base's.
        tokenizer: The directory of its tokenizer; an adapter's own where it has one.
        directories: Every directory that it reads, none of which may be written to.
        config: Its config.json as the tensors are: untied where an adapter unties.
        kinds: Dtype and shape of every tensor that it defines, by name; tied tensors once.
    """

    label: str
    path: Path
    tokenizer: Path
    directories: tuple[Path, ...]
    config: Mapping[str, Any]
    kinds: Mapping[str, Kind]

    @abstractmethod
    def tied_to(self, name: str) -> str | None:
        """The tensor that stands for an output head, or an embedding, that is not stored; see `LazyWeights.tied_to`."""

    @abstractmethod
    def block(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Entries ``start`` to ``stop`` of the flat tensor: a fresh float32 copy (float64 where that is stored).

        A tied name reads the tensor that it is tied to.

        Raises:
            CheckpointError: There is no such tensor, it holds no floating-point numbers, its file cannot be read, or
                (unless allowed) it holds NaN or infinity here.
        """

    @abstractmethod
    def stored(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """The same entries in the tensor's own dtype, integers and truth values too: a fresh copy."""

    def kind(self, name: str) -> Kind:
        """Dtype and shape of a tensor, of a tied one too."""
        owner = name if name in self.kinds else self.tied_to(name)
        if owner is None:
            raise CheckpointError(f"{self.label} has no tensor {name!r}{meant(name, self.kinds)}")
        return self.kinds[owner]

    def __contains__(self, name: object) -> bool:
        return name in self.kinds or self.tied_to(str(name)) is not None

    @property
    def nbytes(self) -> int:
        """Bytes to read for all tensors once."""
        return sum(kind.nbytes for kind in self.kinds.values())

    @property
    def nbytes_beside(self) -> int:
        """Bytes to read beside those of `kinds`: of an adapter."""
        return 0

    @property
    def held_bytes(self) -> int:
        """Memory that reading keeps, at most: an adapter's factors of a few tensors."""
        return 0
