"""A LoRA adapter as the model it defines: base + scaling · B · A, calculated block by block."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._check import TOKENIZERS
from ._files import FileSource, check_block, widened
from ._lora_parts import Factors, Parts, read_parts
from ._source import Kind, Source

HELD = 8  # tensors whose factors are kept
TILE = 65_536  # entries that are calculated at once


class AdapterSource(Source):
    r"""The model that a LoRA adapter makes of its base.

    .. math:: W = W_{base} + \frac{\alpha}{r} B A

    with :math:`\alpha / \sqrt{r}` where the adapter says ``use_rslora``, and the alpha and rank of its patterns. Read
    in float32 and not rounded to the base's dtype in between. A module that was trained whole (``modules_to_save``, a
    resized embedding) stands in its base's place. An adapter on the output head or embedding of a model that ties both
    unties them, because that is what its forward pass calculates; the other one stays the base's.

    Args:
        base: The model that the adapter was trained on.
        adapter: The adapter's directory.
        label: What messages call it.
    Raises:
        CheckpointError: The adapter does not fit the base, or defines a model in a way that is not read here (DoRA,
            an initialisation that changed the base, …), with the reason.

    Source: Hu et al. 2021, arXiv:2106.09685; rslora: Kalajdzievski 2023, arXiv:2312.03732; file format: PEFT.
    Differs: PEFT's ``merge_and_unload`` rounds to the base's dtype, and changes both ends of tied weights.
    """

    def __init__(self, base: FileSource, adapter: Path, *, label: str) -> None:
        self.label = label
        self.path = base.path
        self.tokenizer = adapter if any((adapter / name).is_file() for name in TOKENIZERS) else base.tokenizer
        self.directories = (*base.directories, adapter)
        self._base = base
        self._adapter = FileSource(adapter, allow_nonfinite=base.allow_nonfinite)
        self._parts: Parts = read_parts(base, self._adapter)
        self.kinds: Mapping[str, Kind] = self._parts.kinds
        self.config: Mapping[str, Any] = self._parts.config
        self._held: dict[str, tuple[Tensor, Tensor]] = {}
        self._lock = threading.Lock()

    @property
    def nbytes_beside(self) -> int:
        return self._adapter.nbytes

    @property
    def held_bytes(self) -> int:
        sizes = sorted(
            4 * sum(self._adapter.kinds[key].numel for key in (factors.up, factors.down))
            for factors in self._parts.factors.values()
        )
        return 2 * sum(sizes[-HELD:])  # and while they are made contiguous

    def tied_to(self, name: str) -> str | None:
        return None if name in self.kinds else self._base.tied_to(name)

    def block(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        kind = self.kind(name)
        name = name if name in self.kinds else str(self.tied_to(name))
        start, stop, _ = slice(start, stop).indices(kind.numel)
        replaced = self._parts.replaced.get(name)
        part = self._adapter.block(replaced, start, stop) if replaced else self._base.block(name, start, stop)
        part = part.double() if kind.dtype == torch.float64 else part
        if name in self._parts.biases:
            bias, scaling = self._parts.biases[name]
            part.add_(self._adapter.block(bias, start, stop), alpha=scaling)
        if name in self._parts.factors and start < stop:
            factors = self._parts.factors[name]
            part.add_(self._product(name, factors, kind.shape[1], start, stop), alpha=factors.scaling)
            if not self._base.allow_nonfinite:
                check_block(part, name, self.label)
        return part

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        owner = name if name in self.kinds else self.tied_to(name)
        if owner in self._parts.changed:
            return self.block(name, start, stop).to(self.kind(name).dtype)
        return self._base.stored(name, start, stop)

    def _product(self, name: str, factors: Factors, columns: int, start: int, stop: int) -> Tensor:
        """Entries of B · A. Calculated in tiles of rows that start at multiples of their number, so that an entry does
        not depend on the block it is read in (a matrix product's rounding may depend on its shape).
        """
        left, right = self._factors(name, factors)
        rows = max(16, TILE // columns // 16 * 16)  # 16: every tile starts aligned
        first, last = start // columns // rows, -(-stop // columns // rows) if stop else 0
        tiles = [left[tile * rows : (tile + 1) * rows] @ right for tile in range(first, last)]
        offset = first * rows * columns
        return torch.cat(tiles).view(-1)[start - offset : stop - offset]

    def _factors(self, name: str, factors: Factors) -> tuple[Tensor, Tensor]:
        """(rows, r) and (r, columns) of one tensor's product; those of the last few tensors are kept."""
        with self._lock:
            if name not in self._held:
                wide = torch.float64 if self.kinds[name].dtype == torch.float64 else torch.float32
                while len(self._held) >= HELD:
                    self._held.pop(next(iter(self._held)))
                up, down = (
                    widened(self._adapter.block(key)).to(wide).view(self._adapter.kinds[key].shape)
                    for key in (factors.up, factors.down)
                )
                pair = (down.T, up.T) if factors.transposed else (up, down)
                self._held[name] = pair[0].contiguous(), pair[1].contiguous()
            return self._held[name]
