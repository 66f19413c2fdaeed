"""What a new checkpoint takes over from its parents beside weights: configuration, tokenizer, templates, licence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ._lazy import ADAPTER_CONFIG
from ._source import Kind, Source

SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm")
TERMS = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
TEMPLATES = "additional_chat_templates"
CONFIG = "config.json"
# of a parent's own making, or about files that are not carried
ITS_OWN = {
    ADAPTER_CONFIG, "trainer_state.json", "training_args.json", "quantize_config.json", "all_results.json",
    "train_results.json", "eval_results.json", "requirements.txt",
}  # fmt: skip
OF_TOKENIZERS = ("token", "vocab", "merges", "spiece", "sentencepiece", "special_tokens", "tekken", "chat_template")


def carry_files(
    source: Source,
    directory: Path,
    *,
    kinds: Mapping[str, Kind],
    config: Mapping[str, Any] | None = None,
    tokenizer: Path | None = None,
) -> list[str]:
    """Copies everything but weights, pickles and code, and writes config.json as the new tensors are.

    Args:
        source: The parent whose configuration and other files are taken.
        directory: Receives them.
        kinds: The tensors that are written: their dtype goes into config.json, and whether weights are tied.
        config: What to write instead of `source`'s configuration.
        tokenizer: The directory whose tokenizer is taken, all of its files; `source`'s unless given.
    Returns:
        The names of the files, sorted.
    Raises:
        CheckpointError: A file cannot be read.
    """
    tokenizer = tokenizer or source.tokenizer
    files = {file.name: file for file in _files(source.path) if not _of_tokenizer(file.name)}
    files.update({file.name: file for file in _files(tokenizer) if _of_tokenizer(file.name)})
    files.pop(CONFIG, None)
    for file in (tokenizer / TEMPLATES).glob("*.jinja"):
        files[f"{TEMPLATES}/{file.name}"] = file
    for name, file in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        try:
            shutil.copyfile(file, directory / name)
        except PermissionError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    written = written_config(source.config if config is None else config, kinds)
    text = json.dumps(written, indent=2, ensure_ascii=False) + "\n"
    (directory / CONFIG).write_text(text, encoding="utf-8", errors="backslashreplace")  # half a character: as it was
    return sorted([*files, CONFIG])


def written_config(config: Mapping[str, Any], kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """A configuration that says the dtype of the tensors it lies beside: the one that most of their bytes have."""
    name = _dtype(kinds.values())
    changed = {**config, ("dtype" if "dtype" in config else "torch_dtype"): name}
    for key, inner in config.items():  # of models of several parts
        if isinstance(inner, Mapping):
            changed[key] = {**inner, **{word: name for word in ("dtype", "torch_dtype") if word in inner}}
    return changed


def _dtype(kinds: Iterable[Kind]) -> str:
    sizes: dict[torch.dtype, int] = {}
    for kind in kinds:
        if kind.dtype.is_floating_point:
            sizes[kind.dtype] = sizes.get(kind.dtype, 0) + kind.nbytes
    return str(max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)).removeprefix("torch.")


def _files(directory: Path) -> list[Path]:
    """The files of a directory that are carried; adapters and trainers leave others beside them."""
    return [file for file in sorted(directory.iterdir()) if file.is_file() and _carried(file.name)]


def _carried(name: str) -> bool:
    if name.startswith(".") or name in ITS_OWN or name.endswith(".index.json"):
        return False
    return name.endswith(SUFFIXES) or name.upper().startswith(TERMS)


def _of_tokenizer(name: str) -> bool:
    return name.startswith(OF_TOKENIZERS) or name.endswith((".tiktoken", ".spm")) or "token" in name
