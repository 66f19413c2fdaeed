"""Model directories of given tensors, as the tests of reading and writing need them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"

MIXED = {
    "scalar": torch.tensor(3.5),
    "one": torch.tensor([2.0], dtype=torch.bfloat16),
    "empty": torch.empty(0, 4),
    "half": torch.arange(7, dtype=torch.float16).view(7, 1),
    "double": torch.arange(3, dtype=torch.float64),
    "brain": torch.arange(10, dtype=torch.bfloat16).view(2, 5),
    "single": torch.arange(12, dtype=torch.float32).view(3, 4),
    "number": torch.tensor([1, 2, 3]),
    "mask": torch.tensor([True, False, True]),
    "tiny": torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn),
}


def directory(path: Path, tensors: dict[str, Tensor], shards: int = 1, **config: object) -> Path:
    """A model directory with these tensors; several shards with an index where asked."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    if shards == 1:
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        return path
    index = {name: f"model-{number % shards}.safetensors" for number, name in enumerate(tensors)}
    for file in set(index.values()):
        save_file({name: tensor for name, tensor in tensors.items() if index[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return path


def tokenizer(path: Path, words: list[str], added: list[str] | tuple[()] = ()) -> None:
    """A tokenizer.json of these words, and of tokens added behind them."""
    extra = [{"id": len(words) + number, "content": word} for number, word in enumerate(added)]
    vocabulary = {word: number for number, word in enumerate(words)}
    (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": extra}))


def by_hand(path: Path, tensors: dict[str, Tensor], **config: object) -> Path:
    """A LoRA adapter of these tensors."""
    path.mkdir(parents=True)
    save_file(
        {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()},
        path / "adapter_model.safetensors",
    )
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}))
    return path
