"""Reading a directory's tensors where they lie: mapped into memory, so that nothing is read before it is touched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, meant
from ._check import EMBEDDINGS, INDEX, SINGLE, check_model_dir, weight_files
from ._header import Entry, read_header
from ._json import read_json

ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
HEADS = ("lm_head.weight", "embed_out.weight")
DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32",
    "I64": "int64", "U64": "uint64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


class LazyWeights:
    """The tensors of a model directory, or of a LoRA adapter's, as views on the mapped files.

    Opening reads headers only. A view costs address space and no memory of this process: its pages are the system's
    file cache, read when touched and dropped when memory is short. Views stay valid when this object is gone.

    Args:
        path: A model directory (one safetensors file, or shards with an index) or an adapter directory
            (adapter_config.json and adapter_model.safetensors, no whole model beside them).
    Attributes:
        path: The directory.
        adapter: Whether it is a LoRA adapter's.
        config: Its config.json or adapter_config.json.
        entries: By tensor name: file, dtype, shape, place.
    Raises:
        CheckpointError: The directory cannot be used; see `check_model_dir`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.adapter = is_adapter(self.path)
        if not self.adapter:
            check_model_dir(self.path, tokenizer=False)
        files = [self.path / ADAPTER] if self.adapter else weight_files(self.path)
        self.config: Mapping[str, Any] = read_json(self.path / (ADAPTER_CONFIG if self.adapter else "config.json"))
        self.entries: dict[str, Entry] = {}
        for file in files:
            self.entries.update(read_header(file))
        self._maps: dict[Path, Tensor] = {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype | None]:
        """None where torch has no such dtype."""
        return {name: _dtype(entry) for name, entry in self.entries.items()}

    def tied_to(self, name: str) -> str | None:
        """The stored tensor that stands for an output head, or an embedding, that is not stored itself.

        Tied weights are stored once, under either name. The rule: the directory holds exactly one tensor of the other
        kind, and config.json does not say ``tie_word_embeddings: false``; some architectures tie by default and then
        leave the key out.
        """
        if self.adapter or name in self.entries or self.config.get("tie_word_embeddings") is False:
            return None
        for asked, stored in ((HEADS, EMBEDDINGS), (EMBEDDINGS, HEADS)):
            if name.endswith(asked):
                found = [other for other in self.entries if other.endswith(stored)]
                return found[0] if len(found) == 1 else None
        return None

    def tensor(self, name: str) -> Tensor:
        """A view on the mapped file, in the stored dtype; writing to it changes neither the file nor another process.

        A tensor that its file does not align to its dtype is copied; the usual writers align.

        Raises:
            CheckpointError: There is no such tensor, or torch has no such dtype.
        """
        entry = self._entry(name)
        dtype = _dtype(entry)
        if dtype is None:
            raise CheckpointError(
                f"{name!r} in {entry.file} is stored as {entry.dtype}, which this torch does not have"
            )
        if entry.start == entry.stop:
            return torch.empty(entry.shape, dtype=dtype)
        data = self._map(entry.file)[entry.start : entry.stop]
        if data.data_ptr() % dtype.itemsize:
            data = data.clone()
        return data.view(dtype).view(entry.shape)

    def part(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Entries ``start`` to ``stop`` of the flat tensor, as a view like `tensor`'s."""
        return self.tensor(name).view(-1)[start:stop]

    def _entry(self, name: str) -> Entry:
        stored = name if name in self.entries else self.tied_to(name)
        if stored is None:
            raise CheckpointError(f"{self.path} has no tensor {name!r}{meant(name, self.entries)}")
        return self.entries[stored]

    def _map(self, file: Path) -> Tensor:
        """The bytes of a file; private to this process, so that no write reaches the file."""
        if file not in self._maps:
            try:
                size = file.stat().st_size
                self._maps[file] = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8)
            except (OSError, RuntimeError) as error:
                raise CheckpointError(f"{file} cannot be mapped: {str(error).splitlines()[0]}") from error
        return self._maps[file]


def _dtype(entry: Entry) -> torch.dtype | None:
    return getattr(torch, DTYPES.get(entry.dtype, ""), None)


def is_adapter(path: Path) -> bool:
    """Whether a directory is a LoRA adapter's; a model beside the adapter makes it the model's."""
    if not (path / ADAPTER_CONFIG).is_file() or any((path / name).is_file() for name in (SINGLE, INDEX)):
        return False
    if not (path / ADAPTER).is_file():
        why = "holds pickled weights (adapter_model.bin), which can run code when loaded; save the adapter again with "
        pickled = (path / "adapter_model.bin").is_file()
        raise CheckpointError(f"{path} {why}PEFT" if pickled else f"{path} is not an adapter: {ADAPTER} is missing")
    return True
