"""An adapter read block by block against PEFT's own forward pass, or its weights."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from made import by_hand, directory
from tiny import build_model_dir
from torch import Tensor, nn

from untaxed.checkpoints import Source, load_model, open_source
from untaxed.errors import CheckpointError

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


def test_blocks_of_any_size_are_the_same_bits(tmp_path: Path) -> None:
    base = build_model_dir(tmp_path / "base", dtype="bfloat16")
    adapted(base, tmp_path / "adapter", target_modules=["up_proj", "embed_tokens"], r=3)
    source = open_source(tmp_path / "adapter")
    for name in ("model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"):
        expected = source.block(name)
        for size in (1, 7, 32, 33, 500):
            parts = [source.block(name, start, start + size) for start in range(0, expected.numel(), size)]
            assert torch.cat(parts).equal(expected)
        assert source.kinds[name].dtype == torch.bfloat16
        assert not expected.equal(expected.bfloat16().float())  # not rounded in between
        assert source.stored(name, 5, 9).equal(expected[5:9].bfloat16())
        assert source.block(name, 9, 9).shape == (0,)


def test_tiles_of_wide_and_narrow_tensors_meet(tmp_path: Path) -> None:
    for rows, columns in ((1, 70_000), (70_000, 1), (33, 5000), (5, 3)):
        torch.manual_seed(0)
        path = tmp_path / f"{rows}"
        base = directory(path / "base", {"m.weight": torch.randn(rows, columns)})
        up, down = torch.randn(rows, 2), torch.randn(2, columns)
        by_hand(path / "adapter", {"m.lora_A.weight": down, "m.lora_B.weight": up}, r=2, lora_alpha=3)
        source = open_source(f"{base}+{path / 'adapter'}")
        expected = open_source(base).block("m.weight").view(rows, columns) + up @ down * 1.5
        torch.testing.assert_close(source.block("m.weight").view(rows, columns), expected)
        middle = rows * columns // 2
        assert source.block("m.weight", middle - 3, middle + 3).equal(source.block("m.weight")[middle - 3 : middle + 3])


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["c_attn", "c_proj"], "bias": "all", "lora_bias": True},
        {"target_modules": ["c_proj", "lm_head", "wte"]},  # PEFT's own file says fan_in_fan_out false here
    ],
)
def test_transposed_layers_and_biases_of_gpt2(tmp_path: Path, settings: dict[str, object]) -> None:
    import transformers

    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=16, bos_token_id=0, eos_token_id=1
    )
    base = tmp_path / "base"
    torch.manual_seed(1)
    transformers.GPT2LMHeadModel(config).save_pretrained(base)
    model = adapted(base, tmp_path / "adapter", r=2, **settings)
    source = open_source(tmp_path / "adapter")
    expected = model(torch.arange(12).view(1, 12)).logits
    torch.testing.assert_close(logits_of(source, base), expected, rtol=1e-5, atol=1e-5)


def test_a_resized_embedding_brings_its_rows(tmp_path: Path) -> None:
    base = build_model_dir(tmp_path / "base")
    tensors = {"model.embed_tokens.weight": torch.randn(34, 32), "lm_head.weight": torch.randn(34, 32)}
    source = open_source(f"{base}+{by_hand(tmp_path / 'adapter', tensors)}")
    assert source.config["vocab_size"] == 34
    for name, tensor in tensors.items():
        assert source.kinds[name].shape == (34, 32)
        assert source.block(name).view(34, 32).equal(tensor)
    assert source.stored("model.norm.weight").equal(open_source(base).stored("model.norm.weight"))


def test_a_prefix_that_the_base_lacks_or_has_is_no_matter(tmp_path: Path) -> None:
    factors = {"lora_A.weight": torch.ones(2, 3), "lora_B.weight": torch.ones(4, 2)}
    for number, (stored, adapted_as) in enumerate((("h.0.m", "transformer.h.0.m"), ("transformer.h.0.m", "h.0.m"))):
        path = tmp_path / str(number)
        directory(path / "base", {f"{stored}.weight": torch.zeros(4, 3)})
        by_hand(path / "adapter", {f"{adapted_as}.{name}": tensor for name, tensor in factors.items()})
        assert (
            open_source(f"{path / 'base'}+{path / 'adapter'}").block(f"{stored}.weight").equal(torch.full((12,), 4.0))
        )


A, B = "m.lora_A.weight", "m.lora_B.weight"
GOOD = {A: torch.ones(2, 3), B: torch.ones(4, 2)}


@pytest.mark.parametrize(
    ("tensors", "config", "match"),
    [
        (GOOD, {"use_dora": True}, "use_dora is set: DoRA rescales every row .*; load it with PEFT, merge_and_unload"),
        (
            GOOD,
            {"init_lora_weights": "pissa_niter_4"},
            "init_lora_weights is 'pissa_niter_4', which changed",
        ),
        (GOOD, {"peft_type": "LOHA"}, "it is of the kind LOHA, and only LORA is read here"),
        (GOOD, {"target_parameters": ["experts"]}, "target_parameters is set"),
        (GOOD, {"trainable_token_indices": [1]}, "trainable_token_indices is set"),
        (GOOD, {"r": 3}, r"lora_A\.weight' has shape \(2, 3\), and its configuration says rank 3"),
        (GOOD, {"r": 0}, "r is 0 and lora_alpha 4"),
        (GOOD, {"lora_alpha": None}, "r is 2 and lora_alpha None"),
        (GOOD, {"rank_pattern": {"(": 2}}, "rank_pattern is not a mapping of patterns to numbers"),
        ({A: GOOD[A]}, {}, r"of the two factors of 'm' only 'base_model\.model\.m\.lora_A\.weight' is there"),
        ({**GOOD, "m.lora_magnitude_vector": torch.ones(4)}, {}, "it holds .*magnitude_vector', which is no part"),
        ({A: GOOD[A], B: torch.ones(5, 2)}, {}, r"shapes \(5, 2\) and \(2, 3\) and 'm\.weight' has \(4, 3\)"),
        ({A: torch.ones(2, 3, 1, 1), B: torch.ones(4, 2, 1, 1)}, {}, "'m' is no linear layer or embedding"),
        (
            {k.replace("m", "x", 1): v for k, v in GOOD.items()},
            {},
            r"does not fit .* changes 'x\.weight', which the base",
        ),
        ({"m.weight": torch.ones(4, 5)}, {}, r"has shape \(4, 5\) and 'm\.weight' has \(4, 3\)"),
        ({"m.bias": torch.ones(4)}, {}, r"changes 'm\.bias', which the base does not have"),
    ],
)
def test_what_is_no_sum_of_weights_or_does_not_fit_is_refused(
    tmp_path: Path, tensors: dict[str, Tensor], config: dict[str, object], match: str
) -> None:
    base = directory(tmp_path / "base", {"m.weight": torch.zeros(4, 3)})
    by_hand(tmp_path / "adapter", tensors, **config)
    with pytest.raises(CheckpointError, match=match) as caught:
        open_source(f"{base}+{tmp_path / 'adapter'}")
    assert "\n" not in str(caught.value)


def test_factors_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    base = directory(tmp_path / "base", {"m.weight": torch.zeros(4, 3)})
    by_hand(tmp_path / "adapter", {**GOOD, A: torch.full((2, 3), float("nan"))})
    with pytest.raises(CheckpointError, match=r"lora_A\.weight' of .* holds NaN"):
        open_source(f"{base}+{tmp_path / 'adapter'}").block("m.weight")
    passed = open_source(f"{base}+{tmp_path / 'adapter'}", allow_nonfinite=True)
    assert passed.block("m.weight").isnan().all()
    by_hand(tmp_path / "large", {A: torch.full((2, 3), 1e30), B: torch.full((4, 2), 1e30)})
    with pytest.raises(CheckpointError, match=r"'m\.weight' of .* holds NaN or infinity"):
        open_source(f"{base}+{tmp_path / 'large'}").block("m.weight")


def test_where_base_and_adapter_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = directory(tmp_path / "ba+se", {"m.weight": torch.zeros(4, 3)})
    adapter = by_hand(tmp_path / "ada+pter", GOOD, base_model_name_or_path="../ba+se")
    for text in (f"{base}+{adapter}", str(adapter)):
        source = open_source(text)
        assert source.block("m.weight").equal(torch.full((12,), 4.0))
        assert [place.resolve() for place in source.directories] == [base, adapter]
        assert source.tokenizer.resolve() == base
        assert source.label == text
    (adapter / "tokenizer.json").write_text("{}")
    assert open_source(adapter).tokenizer == adapter
    monkeypatch.chdir(tmp_path)
    assert open_source("ba+se").block("m.weight").count_nonzero() == 0
    assert open_source("ba+se+ada+pter").block("m.weight").count_nonzero() == 12


def test_wrong_places_are_said(tmp_path: Path) -> None:
    base = directory(tmp_path / "base", {"m.weight": torch.zeros(4, 3)})
    adapter = by_hand(tmp_path / "adapter", GOOD)
    lost = by_hand(tmp_path / "lost", GOOD, base_model_name_or_path="/no/where")
    for text, match in (
        (f"{base}+{base}", r"base \(behind the \+ of .*\) is not a LoRA adapter: no adapter_config\.json there"),
        (f"{adapter}+{adapter}", r"adapter \(before the \+ of .*\) is a LoRA adapter itself"),
        (f"{base}+{tmp_path / 'none'}", "none is not a model: there is no such directory"),
        (str(adapter), r"adapter does not name its base model; write MODEL\+"),
        (str(lost), r"the base model of .*lost: /no/where is not a model: .* directory; or write MODEL\+"),
    ):
        with pytest.raises(CheckpointError, match=match):
            open_source(text)
