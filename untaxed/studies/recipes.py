"""How a study's models are made: a GGUF file turned into a plain directory, a short fine-tuning.

Every model becomes a directory of safetensors with its tokenizer; those that are made are kept in the cache.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import (
    check_finite,
    check_model_dir,
    fingerprint,
    is_adapter,
    load_model,
    load_tokenizer,
    no_bars,
    parts_of,
    save_model,
)
from ..errors import CheckpointError, DataError, MissingExtra, RunFailed, SpecError, require
from ..rows import read_rows
from ..templates import filled
from .cache import cached, content_key, file_digest
from .sources import WORLDS, Gguf, ModelSource, ModelsSpec, Sft

log = logging.getLogger("untaxed.prepare")
IGNORED = -100  # the label of padding, which the loss leaves out
# Never pickled weights and never code.
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model")


def prepare_models(models: ModelsSpec, cache: Path) -> tuple[Path, Path | None]:
    """Makes or finds the directories of `initial` and `pretrained`."""
    pretrained = None if models.pretrained is None else _directory(models.pretrained, cache, None)
    return _directory(models.initial, cache, pretrained), pretrained


def _directory(source: ModelSource, cache: Path, pretrained: Path | None) -> Path:
    if isinstance(source, str):
        return named_model(source)
    if source.gguf is not None:
        return convert_gguf(source.gguf, cache)
    assert source.sft is not None  # a recipe has exactly one field
    assert pretrained is not None  # ModelsSpec sees to it
    return fine_tune(source.sft, pretrained, cache)


def named_model(name: str) -> Path:
    """The directory of a model given by name: an embedded world's, a folder's (preferred before a hub's) or a hub id.

    Raises:
        CheckpointError: It is neither, or the directory is not a model that can be used.
    """
    if name in WORLDS:
        from .. import pocket

        return pocket.WORLDS[name].initial_path()
    path = Path(name).expanduser()
    if any(is_adapter(Path(part).expanduser()) for part in (name, *parts_of(name)[1:])):
        raise CheckpointError(
            f"{name} is an adapter, and whole models are read here: merge it first, with `untaxed merge` and a recipe "
            "{merge_method: passthrough, models: [{model: MODEL+ADAPTER}]}"
        )
    if not path.exists():
        path = _from_hub(name)
    check_model_dir(path)
    check_finite(path)
    return path


def _from_hub(name: str) -> Path:
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(f"{name}: no such folder; a hub id has the form owner/name")
    hub = require("huggingface_hub", extra="train")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the hub's client raises many kinds: connection, HTTP, offline mode, unknown names
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"{name} is not a folder and cannot be had from the hub: {reason}; give a model's folder"
        ) from None


# --- GGUF ----------------------------------------------------------------------------------------------------------


def convert_gguf(source: Gguf, cache: Path) -> Path:
    """Turns a GGUF file into a plain float32 directory.

    transformers reads GGUF, but a model that it read so refuses `save_pretrained`; a model built anew from the same
    config takes over its weights.

    Raises:
        MissingExtra: The package that carries the file, or `gguf`, is not installed.
    """
    file = _gguf_file(source)
    key = content_key("gguf", file_digest(file))
    return cached(cache, key, lambda path: _convert(file, path), what=f"{file.name} as safetensors")


def _gguf_file(source: Gguf) -> Path:
    if source.path is not None:
        if not source.path.is_file():
            raise CheckpointError(f"{source.path}: no such GGUF file")
        return source.path
    assert source.package is not None  # Gguf has one of the two
    found = importlib.util.find_spec(source.package)
    if found is None or not found.submodule_search_locations:
        raise MissingExtra(f"package {source.package} is not installed; pip install {source.package.replace('_', '-')}")
    folder = Path(found.submodule_search_locations[0])
    files = {file.name: file for file in sorted(folder.rglob("*.gguf"))}
    if source.file is None and len(files) == 1:
        return next(iter(files.values()))
    if source.file not in files:
        wanted = "name one by `file`" if source.file is None else f"{source.file!r} is not among them"
        raise SpecError(f"package {source.package} carries {len(files)} GGUF files; {wanted}: {', '.join(files)}")
    return files[source.file]


def _convert(file: Path, path: Path) -> None:
    require("gguf", extra="smollm2")
    transformers = require("transformers", extra="train")
    given = {"gguf_file": file.name, "local_files_only": True}
    with no_bars():
        read = transformers.AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **given)
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **given)
    left_out = ("quantization_config", "_name_or_path")
    config = type(read.config).from_dict({k: v for k, v in read.config.to_dict().items() if k not in left_out})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    save_model(model, tokenizer, path)
    check_model_dir(path)  # a tokenizer that was read from GGUF does not always fit


# --- fine-tuning ---------------------------------------------------------------------------------------------------


def fine_tune(sft: Sft, pretrained: Path, cache: Path) -> Path:
    """Tunes `pretrained` on texts by next-token prediction and keeps the result.

    Raises:
        DataError: A row lacks a field of the template, or no text has two tokens.
        RunFailed: The loss is not finite.
    """
    texts = _texts(sft)
    settings = sft.model_dump(mode="json", exclude={"rows"})
    key = content_key("sft", [fingerprint(pretrained), settings, texts])
    return cached(cache, key, lambda path: _tune(sft, pretrained, texts, path), what="initial, fine-tuned on texts")


def _texts(sft: Sft) -> list[str]:
    def check(row: dict[str, Any]) -> None:
        filled(sft.template, row)

    return [filled(sft.template, row) for row in read_rows(sft.rows, check)]


def _tune(sft: Sft, pretrained: Path, texts: Sequence[str], path: Path) -> None:
    model: Any = load_model(pretrained)
    tokenizer = load_tokenizer(pretrained)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=sft.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    batches = _batches(_encode(tokenizer, texts, sft.max_tokens), sft.batch_size, seed=sft.seed)
    for step in range(sft.max_steps):
        for group in optimizer.param_groups:
            group["lr"] = sft.learning_rate * _share_of_rate(step, sft.max_steps)
        _say(step + 1, sft.max_steps, _step(model, optimizer, [part.to(device) for part in next(batches)]))
    model.to("cpu").eval()
    save_model(model, tokenizer, path)


def _say(step: int, steps: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise RunFailed(f"fine-tuning: the loss is {loss} at step {step}; lower sft.learning_rate")
    level = logging.INFO if step % max(1, steps // 10) == 0 else logging.DEBUG
    log.log(level, "fine-tuning step %d of %d, loss %.3f", step, steps, loss)


def _share_of_rate(step: int, steps: int) -> float:
    """Rises over the first tenth of the steps, then falls in a straight line to a tenth."""
    return min((step + 1) / max(1, steps // 10), 1 - 0.9 * step / steps)


def _encode(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Token ids of every text; one that is not cut ends with the end-of-text token, so that the model learns to end."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    encoded = [(tokenizer(text).input_ids + end)[:max_tokens] for text in texts]
    kept = [ids for ids in encoded if len(ids) > 1]
    if not kept:
        raise DataError("sft: no text has two tokens or more")
    return kept


def _batches(rows: Sequence[list[int]], size: int, *, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless shuffled batches ``(batch, seq)``: token ids, attention mask, labels."""
    generator = torch.Generator().manual_seed(seed)
    order = (index for _ in itertools.count() for index in torch.randperm(len(rows), generator=generator).tolist())
    while True:
        chosen = [torch.tensor(rows[next(order)]) for _ in range(size)]
        ids = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in chosen], batch_first=True)
        yield ids, mask, ids.masked_fill(mask == 0, IGNORED)


def _step(model: Any, optimizer: torch.optim.Optimizer, batch: Sequence[Tensor]) -> float:
    ids, mask, labels = batch
    amp = ids.device.type == "cuda" and torch.cuda.is_bf16_supported()
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=amp):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())
