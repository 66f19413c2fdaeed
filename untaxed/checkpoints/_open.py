"""Opening a model by what a user writes: a directory, a hub id, or a model with a LoRA adapter."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError, short
from ._files import FileSource
from ._hub import fetch
from ._json import read_json
from ._lazy import ADAPTER_CONFIG, is_adapter
from ._lora import AdapterSource
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
    label = str(model)
    first, *adapter = parts_of(label)
    if adapter:
        return _adapted(_place(first), _place(adapter[0]), label, allow_nonfinite)
    path = _place(label)
    if is_adapter(path):
        return _adapted(_base(path), path, label, allow_nonfinite)
    return FileSource(path, label=label, allow_nonfinite=allow_nonfinite)


def parts_of(label: str) -> tuple[str, ...]:
    """The model that a label names, or the model and the adapter of a ``MODEL+ADAPTER``."""
    for at in () if is_directory(label) else [n for n, letter in enumerate(label) if letter == "+"][::-1]:
        base, adapter = label[:at].strip(), label[at + 1 :].strip()
        if base and adapter and (is_directory(adapter) or "+" not in label[:at]):
            return base, adapter
    return (label,)


def _adapted(base: Path, adapter: Path, label: str, allow_nonfinite: bool) -> Source:
    if not is_adapter(adapter):
        raise CheckpointError(f"{adapter} (behind the + of {label}) is not a LoRA adapter: no {ADAPTER_CONFIG} there")
    if is_adapter(base):
        raise CheckpointError(f"{base} (before the + of {label}) is a LoRA adapter itself; merge it first, alone")
    return AdapterSource(FileSource(base, allow_nonfinite=allow_nonfinite), adapter, label=label)


def _base(adapter: Path) -> Path:
    """The base model that an adapter names: as it is written, or relative to the adapter."""
    config = read_json(adapter / ADAPTER_CONFIG)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"{adapter} does not name its base model; write MODEL+{adapter}")
    try:
        if not is_directory(name) and is_directory(adapter / name):
            return adapter / name
        return _place(f"{name}@{revision}" if revision and not is_directory(name) else name)
    except CheckpointError as error:
        raise CheckpointError(f"the base model of {adapter}: {error}; or write MODEL+{adapter}") from error


def _place(model: str) -> Path:
    """The directory of a model; only what looks like no path is asked of a hub."""
    path = Path(model).expanduser()
    if is_directory(model):
        return path
    if model.startswith(("/", "./", "../", "~")) or path.exists():
        raise CheckpointError(f"{model} is not a model: there is no such directory")
    return fetch(model)


def is_directory(model: str | Path) -> bool:
    """Whether there is such a directory.

    Raises:
        CheckpointError: There can be none: the name is too long, or must not be looked up.
    """
    try:
        return Path(model).expanduser().is_dir()
    except (OSError, RuntimeError) as error:  # of ~nobody it is the latter
        why = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{short(str(model), 100)} is not a model: {why}") from None
