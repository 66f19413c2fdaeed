"""Loading models, tokenizers and weights from directories; no hub is asked and no code of theirs is run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointError, require
from ._bars import no_bars
from ._check import check_model_dir, weight_files
from ._finite import check_finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(path: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Loads a causal language model from a directory, in evaluation mode.

    Args:
        path: The directory.
        dtype: Of the weights; float32 unless asked, since a bfloat16 file would load as weights that hardly move at
            the learning rates of alignment.
    Raises:
        CheckpointError: The directory cannot be used, or its weights and its configuration do not fit.
    """
    return _loaded("AutoModelForCausalLM", Path(path), dtype)


def load_classifier(path: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Loads a sequence classifier, such as a reward model, from a directory, in evaluation mode.

    Raises:
        CheckpointError: The directory cannot be used, holds another kind of model, or weights that do not fit.
    """
    return _loaded("AutoModelForSequenceClassification", Path(path), dtype)


def _loaded(kind: str, path: Path, dtype: torch.dtype) -> PreTrainedModel:
    transformers = require("transformers", extra="train")
    path = path.absolute()
    shapes = check_model_dir(path, tokenizer=False)
    check_finite(path)
    with _quiet(transformers):
        try:
            model, report = getattr(transformers, kind).from_pretrained(
                path, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a config.json can be wrong in any way, and every architecture reads its own keys
            raise CheckpointError(f"{path} cannot be loaded: {_one_line(error)}") from error
    missing, mismatched = sorted(report["missing_keys"]), sorted(str(key) for key in report["mismatched_keys"])
    if missing or mismatched:
        raise CheckpointError(
            f"the weights of {path} do not fit its config.json: {len(missing)} missing, {len(mismatched)} of another "
            f"shape (first: {[*missing, *mismatched][0]}); {len(shapes)} are there"
        )
    found: PreTrainedModel = model.eval()
    return found


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer that lies beside a model."""
    transformers = require("transformers", extra="train")
    path = Path(path).absolute()
    check_model_dir(path)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # tokenizers raises its own kinds
        raise CheckpointError(f"the tokenizer of {path} cannot be loaded: {_one_line(error)}") from error
    for how in ("local_files_only", "is_local"):  # how it was loaded would be saved as if it were a setting
        tokenizer.init_kwargs.pop(how, None)
    return tokenizer


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a model directory by name, as stored."""
    path = Path(path)
    check_model_dir(path, tokenizer=False)
    weights: dict[str, Tensor] = {}
    for file in weight_files(path):
        try:
            weights.update(load_file(file))
        except SafetensorError as error:
            raise CheckpointError(f"{file} cannot be read: {_one_line(error)}") from error
    return weights


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """No report about what is being loaded; our own checks say what is wrong."""
    logging = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with no_bars():
            yield
    finally:
        logging.set_verbosity(level)


def _one_line(error: Exception) -> str:
    """The first line, and the next where the first only introduces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
