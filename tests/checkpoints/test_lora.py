"""An adapter read block by block against PEFT's own forward pass, or its weights."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from tiny import build_model_dir
from torch import Tensor, nn

from untaxed.checkpoints import Source, load_model, open_source

peft = pytest.importorskip("peft")


def adapted(base: Path, out: Path, **settings: object) -> nn.Module:
    """Saves an adapter with random factors, and returns the model that PEFT makes of it."""
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(load_model(base), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn_like(parameter) * 0.3 if "lora_" in name else parameter + 0.1
        model.peft_config["default"].base_model_name_or_path = str(base)
        model.save_pretrained(out)
    return model.eval()


def read(source: Source) -> dict[str, Tensor]:
    return {name: source.block(name).view(kind.shape) for name, kind in source.kinds.items()}


def logits_of(source: Source, base: Path) -> Tensor:
    """What the tensors of a source calculate as a plain model with its configuration."""
    import transformers

    config = transformers.AutoConfig.for_model(**source.config)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing, unexpected = model.load_state_dict(read(source), strict=False)
    assert not unexpected
    assert all(source.tied_to(name) for name in missing)
    model.tie_weights()
    return model.eval()(torch.arange(12).view(1, 12)).logits


LINEAR = ["q_proj", "v_proj", "down_proj"]
SETTINGS = {
    "plain": {"target_modules": LINEAR, "r": 3, "lora_alpha": 5},
    "rslora": {"target_modules": LINEAR, "r": 4, "lora_alpha": 8, "use_rslora": True},
    "patterns": {
        "target_modules": LINEAR,
        "r": 2,
        "rank_pattern": {"v_proj": 5, r"layers\.1\.mlp\.down_proj": 7},
        "alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 20, "proj": 9},
    },
    "saved whole": {"target_modules": LINEAR, "r": 2, "modules_to_save": ["lm_head"]},
    "embedding saved whole": {"target_modules": LINEAR, "r": 2, "modules_to_save": ["embed_tokens"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"], "r": 2},
    "head": {"target_modules": ["lm_head", "o_proj"], "r": 2},
    "both ends": {"target_modules": ["lm_head", "embed_tokens"], "r": 2},
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", SETTINGS)
def test_an_adapter_is_the_model_that_its_forward_pass_calculates(tmp_path: Path, case: str, tied: bool) -> None:
    base = build_model_dir(tmp_path / "base", tied=tied)
    model = adapted(base, tmp_path / "adapter", **SETTINGS[case])
    source = open_source(tmp_path / "adapter")
    expected = model(torch.arange(12).view(1, 12)).logits
    torch.testing.assert_close(logits_of(source, base), expected, rtol=1e-5, atol=1e-5)
    plain = load_model(base)(torch.arange(12).view(1, 12)).logits
    assert (expected - plain).abs().max() > 0.01
