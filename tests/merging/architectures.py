"""Tiny models of many architectures, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

SMALL: Mapping[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 24, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS: Mapping[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 8}
ROWS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {}),
    "opt": ("OPTConfig", "OPTForCausalLM", {"ffn_dim": 24, "word_embed_proj_dim": 16}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {"head_dim": 8}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {**EXPERTS, "num_experts": 4}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 4}),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM", {"num_local_experts": 4, "head_dim": 8}),
    "mamba": ("MambaConfig", "MambaForCausalLM", {}),
    "phi": ("PhiConfig", "PhiForCausalLM", {}),
    "bert": ("BertConfig", "BertForMaskedLM", {}),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_hidden_layers": 2, "num_decoder_layers": 2, "num_heads": 2},
    ),
}


def built(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any) -> torch.nn.Module:
    """A model whose weights depend on the seed alone; biases and norms are random too."""
    import transformers

    config, model, extra = ROWS[name]
    make: Callable[..., Any] = getattr(transformers, model)
    torch.manual_seed(seed)
    module = make(getattr(transformers, config)(**{**SMALL, **extra, **settings})).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return module.eval()
