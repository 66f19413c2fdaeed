"""Opening a model by what a user writes: a directory, a hub id, or a model with a LoRA adapter."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError
from ._files import FileSource
from ._source import Source


def open_source(model: str | Path, *, allow_nonfinite: bool = False) -> Source:
    """Opens a model for reading block by block; only headers are read.

    Args:
        model: A model directory; a LoRA adapter's directory, which stands for its base model with the adapter merged
            in; ``MODEL+ADAPTER``, the same with the base model named; or, where there is no such directory, a hub id
            (``owner/name`` or ``owner/name@revision``; safetensors only).
        allow_nonfinite: Whether blocks with NaN or infinity are passed on instead of refused.
    Raises:
        CheckpointError: What is wrong, in one line.
    """
    if not Path(model).is_dir():
        raise CheckpointError(f"{model} is not a model: there is no such directory")
    return FileSource(model, label=str(model), allow_nonfinite=allow_nonfinite)
