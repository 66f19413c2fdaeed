"""Layers found in the names of tensors."""

from __future__ import annotations

import pytest
import torch

from untaxed.merging._layers import natural, stacks
from untaxed.merging._resolve import BEFORE


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["transformer.wte.weight", "transformer.h.0.ln_1.bias", "transformer.h.1.ln_1.bias"], {"transformer.h": 2}),
        (["model.layers.0.mlp.experts.0.w1.weight", "model.layers.0.mlp.experts.1.w1.weight"], {"model.layers": 1}),
        (["encoder.block.0.layer.0.a.weight", "decoder.block.0.a.weight"], {"encoder.block": 1, "decoder.block": 1}),
        (["score.0.weight", "score.2.weight"], {}),  # a head of linear maps and what lies between
        (["score.0.weight", "score.1.weight"], {}),
        (["layers.0.a.weight", "layers.2.a.weight"], {}),  # a layer is missing: no stack
        (["layers.0.a.weight", "layers.0.b.weight", "layers.1.a.weight", "layers.1.c.weight"], {"layers": 2}),
        ([], {}),
    ],
)  # fmt: skip
def test_stacks(names: list[str], expected: dict[str, int]) -> None:
    assert stacks(names) == expected


def test_layers_of_real_architectures() -> None:
    import transformers

    shape = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    wide = {**shape, "intermediate_size": 24}
    kinds = {
        "model.layers": [("Llama", wide), ("Qwen2", wide), ("Gemma2", {**wide, "head_dim": 8}), ("Phi", wide)],
        "model.layers ": [("Mixtral", {**wide, "num_key_value_heads": 2, "num_local_experts": 2})],
        "transformer.h": [("GPT2", {**shape, "bos_token_id": 0, "eos_token_id": 0})],
        "gpt_neox.layers": [("GPTNeoX", wide)],
        "model.decoder.layers": [("OPT", {**shape, "ffn_dim": 24, "word_embed_proj_dim": 8})],
        "bert.encoder.layer": [("Bert", {**wide, "is_decoder": True})],
    }  # fmt: skip
    for stack, models in kinds.items():
        for name, sizes in models:
            config = getattr(transformers, f"{name}Config")(**sizes)
            with torch.device("meta"):
                names = list(transformers.AutoModelForCausalLM.from_config(config).state_dict())
            assert stacks(names) == {stack.strip(): 3}, name
            before = {each for each in names if BEFORE.search(each)}
            assert 1 <= len(before) <= 6
            assert not any("head" in each or "norm" in each.split(".")[-2].replace("LayerNorm", "") for each in before)


def test_layer_ten_comes_after_layer_nine() -> None:
    names = ["h.10.a", "h.9.a", "h.9.b", "wte"]
    assert sorted(names, key=natural) == ["h.9.a", "h.9.b", "h.10.a", "wte"]
