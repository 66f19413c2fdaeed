from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import ROWS, built

from untaxed.errors import UsageError
from untaxed.merging import AS_AVERAGE, AS_RELEASED, Partition, partition
from untaxed.merging._blocks import Role


def every_name(cut: Partition) -> list[str]:
    blocks = [name for block in cut.blocks for name in block.tensors]
    return blocks + [name for names in cut.rest.values() for name in names]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("name", ROWS)
def test_every_tensor_stands_in_one_place(name: str, apart: bool) -> None:
    model = built(name)
    cut = partition(model, 2, apart=apart)
    assert sorted(every_name(cut)) == sorted(model.state_dict())
    halves = 2 if apart and name != "mamba" else 1  # mamba's layers have no MLP
    assert [block.layers for block in cut.blocks] == [2] * 2 * halves
    assert "other" not in cut.rest or name in ("mamba", "gpt_oss", "bert")


@pytest.mark.parametrize("name", ROWS)
def test_blocks_are_the_matrices_within_layers(name: str) -> None:
    model = built(name)
    shapes = {tensor: tuple(value.shape) for tensor, value in model.state_dict().items()}
    cut = partition(model, 2)
    for block in cut.blocks:
        assert all(len(shapes[tensor]) > 1 for tensor in block.tensors)
    linear = {
        f"{path}.weight" for path, module in model.named_modules() if type(module).__name__ in ("Linear", "Conv1D")
    }
    outside = {tensor for names in cut.rest.values() for tensor in names} & linear
    assert all("head" in tensor or "cls" in tensor or "embed_out" in tensor for tensor in outside), outside


@pytest.mark.parametrize("name", ROWS)
def test_a_module_and_the_shapes_of_its_file_are_cut_alike(name: str) -> None:
    model = built(name)
    cut = partition(model, 2)
    shapes = {tensor: tuple(value.shape) for tensor, value in model.state_dict().items()}
    assert [block.name for block in partition(shapes, 2).blocks] == [block.name for block in cut.blocks]
    assert [block.parameters for block in partition(shapes, 2).blocks] == [block.parameters for block in cut.blocks]


@pytest.mark.parametrize(
    ("model", "tensor", "role"),
    [
        ("llama", "model.embed_tokens.weight", "embedding"),
        ("llama", "model.layers.1.input_layernorm.weight", "norm"),
        ("llama", "model.norm.weight", "norm"),
        ("llama", "lm_head.weight", "head"),
        ("gpt2", "transformer.wpe.weight", "embedding"),
        ("gpt2", "transformer.h.0.ln_1.bias", "norm"),
        ("gpt2", "transformer.h.0.mlp.c_fc.bias", "bias"),
        ("gpt2", "lm_head.weight", "embedding"),  # tied
        ("gpt_neox", "gpt_neox.embed_in.weight", "embedding"),
        ("gpt_neox", "lm_head.weight", "head"),
        ("mixtral", "model.layers.2.mlp.gate.weight", "router"),
        ("gpt_oss", "model.layers.2.mlp.router.bias", "router"),
        ("gpt_oss", "model.layers.2.mlp.experts.down_proj_bias", "bias"),
        ("gpt_oss", "model.layers.2.self_attn.sinks", "other"),
        ("phi", "lm_head.bias", "head"),
        ("bert", "cls.predictions.transform.dense.weight", "head"),
        ("bert", "bert.embeddings.LayerNorm.weight", "norm"),
        ("t5", "shared.weight", "embedding"),
        ("qwen2", "model.layers.0.self_attn.q_proj.bias", "bias"),
    ],
)
def test_roles(model: str, tensor: str, role: Role) -> None:
    assert tensor in partition(built(model), 2).rest[role]


def test_old_names_of_mixtral_and_its_router() -> None:
    layer = {f"model.layers.{n}.block_sparse_moe.experts.{e}.w1.weight": (4, 4) for n in range(2) for e in range(8)}
    gates = {f"model.layers.{n}.block_sparse_moe.gate.weight": (8, 4) for n in range(2)}
    cut = partition({**layer, **gates}, 2)
    assert [(block.name, len(block.tensors)) for block in cut.blocks] == [("layer 0", 8), ("layer 1", 8)]
    assert cut.rest == {"router": tuple(gates)}


def test_a_dense_models_gate_projection_is_no_router() -> None:
    cut = partition(built("llama"), 1)
    assert "model.layers.0.mlp.gate_proj.weight" in cut.blocks[0].tensors


def test_attention_and_mlp_apart() -> None:
    cut = partition(built("llama"), 2, apart=True)
    assert cut.names == ("layers 0-1 attention", "layers 0-1 mlp", "layers 2-3 attention", "layers 2-3 mlp")
    assert all("self_attn" in tensor for tensor in cut.blocks[0].tensors)
    assert all(".mlp." in tensor for tensor in cut.blocks[3].tensors)


def layers(count: int) -> dict[str, Any]:
    return {f"model.layers.{n}.mlp.weight": (2, 2) for n in range(count)}


@pytest.mark.parametrize(
    ("count", "blocks", "sizes"),
    [(26, 3, [8, 9, 9]), (26, 9, [2, 3, 3, 3, 3, 3, 3, 3, 3]), (6, 6, [1] * 6), (32, 3, [10, 11, 11]), (1, 1, [1])],
)
def test_a_split_is_balanced_and_the_papers_for_its_model(count: int, blocks: int, sizes: list[int]) -> None:
    assert [block.layers for block in partition(layers(count), blocks).blocks] == sizes


def test_layers_are_in_the_order_of_their_numbers() -> None:
    assert partition(layers(12), 2).blocks[1].tensors[-1] == "model.layers.11.mlp.weight"


def test_groups_of_layers() -> None:
    cut = partition(layers(6), [[0, 5], [1, 2, 3, 4]])
    assert cut.names == ("layers 0, 5", "layers 1-4")
    assert [block.layers for block in cut.blocks] == [2, 4]


def test_blocks_by_pattern_come_before_roles() -> None:
    model = built("gpt2")
    cut = partition(model, {"norms": r"\bln_", "attention": r"\.attn\."})
    assert cut.names == ("norms", "attention")
    assert "transformer.h.0.ln_1.weight" in cut.blocks[0].tensors
    assert "transformer.h.0.attn.c_attn.bias" in cut.blocks[1].tensors
    assert "transformer.h.0.mlp.c_fc.weight" in cut.rest["other"]
    assert sorted(every_name(cut)) == sorted(model.state_dict())


def test_the_largest_stack_holds_the_layers_unless_another_is_named() -> None:
    shapes = {f"vision.layers.{n}.w.weight": (2, 2) for n in range(6)} | {
        f"text.layers.{n}.w.weight": (9, 9) for n in range(4)
    }
    assert partition(shapes, 2).names == ("layers 0-1", "layers 2-3")
    assert set(partition(shapes, 2).rest["other"]) == {f"vision.layers.{n}.w.weight" for n in range(6)}
    assert partition(shapes, 2, stack="vision.layers").names == ("layers 0-2", "layers 3-5")


def test_an_encoder_comes_before_its_decoder() -> None:
    cut = partition(built("t5"), 2)
    assert all(tensor.startswith("encoder.") for tensor in cut.blocks[0].tensors)
    assert all(tensor.startswith("decoder.") for tensor in cut.blocks[1].tensors)


def test_tied_tensors_count_once() -> None:
    cut = partition(built("qwen2"), 2)
    assert set(cut.rest["embedding"]) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert "head" not in cut.rest


def test_a_mean_is_weighed_as_asked() -> None:
    shapes = {"h.0.a.weight": (2, 3), "h.1.a.weight": (2, 3), "h.2.a.weight": (3, 4)}  # 12 parameters, and 12
    ratios = {"layers 0-1": 0.1, "layer 2": 0.4}
    means = {kind: partition(shapes, [[0, 1], [2]], weighting=kind).mean(ratios) for kind in ("blocks", "layers")}
    assert means == pytest.approx({"blocks": 0.25, "layers": 0.2})
    shapes["h.2.a.weight"] = (6, 6)  # 12 and 36
    assert partition(shapes, [[0, 1], [2]], weighting="parameters").mean(ratios) == pytest.approx(0.325)


def test_policies_give_shares() -> None:
    cut = partition(built("llama"), 2, policies={"norm": "initial", "embedding": "aligned"})
    shares = cut.shares({"layers 0-1": 0.1, "layers 2-3": 0.3})
    assert shares["model.norm.weight"] == 1.0
    assert shares["model.embed_tokens.weight"] == 0.0
    assert shares["lm_head.weight"] == pytest.approx(0.2)
    assert shares["model.layers.1.mlp.up_proj.weight"] == 0.1
    assert cut.shares(cut.equal(0.1), rest_share=0.5)["lm_head.weight"] == 0.5
    assert AS_AVERAGE["norm"] == "mean"
    assert (AS_RELEASED["norm"], AS_RELEASED["head"]) == ("initial", "mean")


def test_the_description_is_plain() -> None:
    import json

    told = json.loads(json.dumps(partition(layers(2), 2).describe()))
    assert told["blocks"]["layer 1"] == {"layers": 1, "parameters": 4, "tensors": ["model.layers.1.mlp.weight"]}
    assert told["weighting"] == "blocks"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blocks": 5}, "blocks must be between 1 and the model's 4 layers, got 5"),
        ({"blocks": 0}, "between 1 and the model's 4 layers, got 0"),
        ({"blocks": True}, "between 1 and the model's 4 layers, got True"),
        ({"blocks": [[0, 1], [1, 2, 3]]}, "every layer from 0 to 3 must stand in one group, and 1 in 2"),
        ({"blocks": [[0, 1], [2]]}, "one group, and 3 in 0"),
        ({"blocks": [[0, 1, 2, 3, 4]]}, "there is no layer 4; the model's last is 3"),
        ({"blocks": {"a": "nothing"}}, "the expression of block 'a', 'nothing', matches no tensor's name"),
        ({"blocks": {"a": "layers", "b": "mlp"}}, "blocks 'a' and 'b' both match 'model.layers.0.mlp.weight'"),
        ({"blocks": {"a": "("}}, r"the expression of block 'a' is none: "),
        ({"policies": {"norms": "initial"}}, "unknown role 'norms'; did you mean 'norm'"),
        ({"policies": {"norm": "start"}}, "unknown policy of norm 'start'"),
        ({"weighting": "layer"}, "unknown weighting 'layer'; did you mean 'layers'"),
        ({"stack": "model.layer"}, "no layers stand in 'model.layer'; did you mean 'model.layers'"),
    ],
)
def test_what_cannot_be_cut_so_is_one_line(arguments: dict[str, Any], message: str) -> None:
    import re

    with pytest.raises(UsageError, match=re.escape(message)):
        partition(layers(4), **arguments)


def test_a_model_without_layers_says_what_to_do() -> None:
    with pytest.raises(UsageError, match="no numbered layers; give blocks as regular expressions"):
        partition({"w": (2, 2)})


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ({"layer 0": 0.1}, "block 'layer 1' has no ratio"),
        ({"layer 0": 0.1, "layer 1": 0.1, "layer 3": 0.1}, "there is no block 'layer 3'"),
        ({"layer 0": 0.1, "layer 1": 1.5}, r"the ratio of 'layer 1' must be in \[0, 1\], got 1.5"),
        ({"layer 0": 0.1, "layer 1": "0.5"}, r"the ratio of 'layer 1' must be a number"),
    ],
)
def test_ratios_that_do_not_fit_are_refused(ratios: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        partition(layers(2), 2).shares(ratios)


def test_a_model_without_storage_ties_nothing() -> None:
    with torch.device("meta"):
        model = torch.nn.ModuleDict({"h": torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(3)])})
    assert partition(model, 3).names == ("layer 0", "layer 1", "layer 2")
