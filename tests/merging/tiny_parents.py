"""Small models as files, and what `resolve` asks of them, without the package's own reading of checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from untaxed.merging._recipe import Recipe
from untaxed.merging._resolve import Resolved, Taken, resolve
from untaxed.merging._rule import merged


class Parent:
    """Named tensors; a head that is not stored is tied to the embedding."""

    def __init__(self, tensors: dict[str, Tensor], config: dict[str, Any] | None = None) -> None:
        self.kinds, self.config = tensors, config or {}

    def tied_to(self, name: str) -> str | None:
        stored = [found for found in self.kinds if found.endswith(("embed_tokens.weight", "wte.weight"))]
        return stored[0] if name == "lm_head.weight" and name not in self.kinds and stored else None

    def tensor(self, name: str) -> Tensor:
        return self.kinds[name if name in self.kinds else str(self.tied_to(name))]


def named(layers: int = 4, *, head: bool = True) -> Parent:
    """A model whose tensors have names and nothing else of interest."""
    inner = ("input_layernorm.weight", "mlp.up_proj.weight", "self_attn.q_proj.weight")
    names = [f"model.layers.{layer}.{name}" for layer in range(layers) for name in inner]
    outer = ["model.embed_tokens.weight", "model.norm.weight", *(["lm_head.weight"] if head else [])]
    return Parent({name: torch.zeros(2) for name in outer + names}, {"num_hidden_layers": layers})


def saved(
    path: Path,
    seed: int,
    *,
    dtype: torch.dtype = torch.float32,
    base: Path | None = None,
    scale: float = 1,
    tied: bool = False,
) -> Path:
    """A four-layer Llama with random weights, near those of `base` where one is given."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=tied))
    fill(model, seed, scale, load_file(base / "model.safetensors") if base else {})
    model.to(dtype).save_pretrained(path)
    return path


def saved_gpt2(path: Path) -> Path:
    """A two-layer GPT-2 with random weights: other names, biases, a head that is tied."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 24, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    fill(model, 0, 1, {})
    model.save_pretrained(path)
    return path


def fill(model: torch.nn.Module, seed: int, scale: float, start: dict[str, Tensor]) -> None:
    """Random weights, added to those given."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.1 * scale
            parameter.copy_(noise + start.get(name, torch.zeros(())).float())


def opened(path: str | Path) -> Parent:
    return Parent(load_file(Path(path) / "model.safetensors"), json.loads((Path(path) / "config.json").read_text()))


def merge_whole(recipe: Recipe, parents: dict[str, Parent]) -> dict[str, Tensor]:
    """Every tensor of the output in its parent's dtype, one whole tensor after the other."""

    def get(taken: Taken) -> Tensor:
        return parents[taken.parent].tensor(taken.name)

    def one(made: Resolved) -> Tensor:
        models = [get(taken) for taken in made.models]
        if made.rule is None:
            return models[0]
        return merged(made.rule, models, get(made.base) if made.base else None, name=made.name)

    return {made.name: one(made) for made in resolve(recipe, parents)}
