from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import pytest
import torch
from architectures import ROWS, built
from torch import Tensor, nn

from untaxed.errors import UsageError
from untaxed.merging import (
    AS_RELEASED,
    average,
    blended,
    heterogeneous_average,
    partition,
)
from untaxed.weights import same


def both(name: str, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return tuple({k: v.clone() for k, v in built(name, seed=seed, dtype=dtype).state_dict().items()} for seed in (0, 1))  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "bert"])
def test_equal_ratios_are_plain_averaging_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    initial, aligned = both(name, dtype)
    for share in (0.2, 1 / 3, 0.0, 1.0):
        cut = partition(initial, 3)
        assert same(
            heterogeneous_average(initial, aligned, cut.equal(share), cut),
            average(initial, aligned, initial_share=share),
        )


@pytest.mark.parametrize("name", ROWS)
def test_the_ends_are_the_parents_bit_for_bit(name: str) -> None:
    initial, aligned = both(name)
    cut = partition(initial, 2)
    assert same(heterogeneous_average(initial, aligned, cut.equal(0), cut), aligned)
    assert same(heterogeneous_average(initial, aligned, cut.equal(1), cut), initial)


def test_every_tensor_has_its_own_share() -> None:
    initial, aligned = both("llama")
    kept = copy.deepcopy((initial, aligned))
    cut = partition(initial, 2, policies={"norm": "initial", "embedding": "aligned", "head": "mean"})
    merged = heterogeneous_average(initial, aligned, {"layers 0-1": 0.1, "layers 2-3": 0.5}, cut)
    expected = {"model.layers.0.mlp.up_proj.weight": 0.1, "model.layers.3.self_attn.q_proj.weight": 0.5}
    expected |= {"model.norm.weight": 1.0, "model.embed_tokens.weight": 0.0, "lm_head.weight": 0.3}
    for name, share in expected.items():
        assert torch.allclose(merged[name], share * initial[name] + (1 - share) * aligned[name], atol=1e-6), name
    assert same(initial, kept[0])
    assert same(aligned, kept[1])


def test_a_model_with_itself_is_that_model() -> None:
    weights, _ = both("gpt2", torch.bfloat16)
    cut = partition(weights, [[0], [1, 2, 3]])
    assert same(heterogeneous_average(weights, weights, {"layer 0": 0.123, "layers 1-3": 0.7}, cut), weights)


def test_integers_empties_and_scalars() -> None:
    initial = {"h.0.w.weight": torch.zeros(2, 2), "n": torch.tensor(1), "e": torch.empty(0), "s": torch.tensor(4.0)}
    aligned = {"h.0.w.weight": torch.ones(2, 2), "n": torch.tensor(2), "e": torch.empty(0), "s": torch.tensor(8.0)}
    cut = partition(initial, 1)
    merged = heterogeneous_average(initial, aligned, cut.equal(0.25), cut)
    assert (merged["n"].item(), merged["s"].item(), merged["e"].shape) == (2, 7.0, (0,))
    assert merged["n"].dtype == torch.int64


def test_a_tensor_that_the_partition_lacks_is_named() -> None:
    initial = {"h.0.w.weight": torch.zeros(2, 2)}
    cut = partition(initial, 1)
    more = {**initial, "h.1.w.weight": torch.zeros(2, 2)}
    with pytest.raises(UsageError, match=r"the partition has no tensor 'h.1.w.weight'"):
        heterogeneous_average(more, more, cut.equal(0.1), cut)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_in_place_is_the_same_and_the_model_gets_its_own_back(name: str, dtype: torch.dtype) -> None:
    initial, aligned = both(name, dtype)
    model = built(name, seed=2, dtype=dtype)
    own = copy.deepcopy(model.state_dict())
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    cut = partition(model, 2, policies=AS_RELEASED)
    with blended(model, initial, aligned, cut) as blend:
        for ratios in (cut.named([0.1, 0.3]), cut.named([0.1, 0.0]), cut.equal(0.2), cut.equal(1.0)):
            blend.write(ratios)
            assert same(model.state_dict(), heterogeneous_average(initial, aligned, ratios, cut))
    assert same(model.state_dict(), own)
    assert places == {name: parameter.data_ptr() for name, parameter in model.named_parameters()}


def test_the_own_weights_come_back_when_the_block_raises() -> None:
    model = built("llama")
    own = copy.deepcopy(model.state_dict())
    initial, aligned = both("llama")
    cut = partition(model, 2)

    def breaks() -> None:
        with blended(model, initial, aligned, cut) as blend:
            blend.write(cut.equal(0.5))
            raise KeyError

    with pytest.raises(KeyError):
        breaks()
    assert same(model.state_dict(), own)


def test_the_models_own_tensors_may_be_the_aligned_ones() -> None:
    """Given as views of the model's memory, they would be overwritten by the first average."""
    model, (initial, _) = built("llama", seed=1), both("llama")
    aligned = dict(model.named_parameters())
    kept = {name: parameter.detach().clone() for name, parameter in aligned.items()}
    cut = partition(model, 2)
    with blended(model, {name: initial[name] for name in aligned}, aligned, cut) as blend:
        blend.write(cut.equal(0.9))
        blend.write(cut.equal(0.0))
        assert same(dict(model.named_parameters()), kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_where_both_have_the_same_infinity_or_zero_all_three_averages_keep_it(share: float, dtype: torch.dtype) -> None:
    endless = torch.tensor([[-math.inf, math.inf], [-0.0, 0.0]], dtype=dtype)
    ends = tuple({"h.0.weight": endless.clone(), "h.1.weight": torch.full((1, 1), n, dtype=dtype)} for n in (0, 1))
    model = nn.Module()
    model.h = nn.ModuleList([nn.Linear(2, 2, bias=False, dtype=dtype), nn.Linear(1, 1, bias=False, dtype=dtype)])
    cut = partition(model, 2)
    plain = average(*ends, initial_share=share)
    with blended(model, *ends, cut) as blend:
        blend.write(cut.equal(share))
        for made in (plain, heterogeneous_average(*ends, cut.equal(share), cut), model.state_dict()):
            assert torch.equal(made["h.0.weight"], endless)
            assert torch.equal(made["h.0.weight"].signbit(), endless.signbit())
            assert torch.equal(made["h.1.weight"], plain["h.1.weight"])


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(2)])
        self.register_buffer("seen", torch.tensor(3.0))


def test_buffers_that_are_not_given_stay() -> None:
    model = Tiny()
    weights = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    cut = partition(model, 2)
    with blended(model, weights, weights, cut) as blend:
        blend.write(cut.equal(0.5))
        assert model.seen.item() == 3.0
        assert model.layers[0].weight.abs().sum() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {k: v for k, v in w.items() if k != "layers.0.bias"}, "'layers.0.bias' is missing from the weights"),
        (lambda w: {**w, "extra": torch.zeros(1)}, "the model has no tensor 'extra'"),
        (
            lambda w: {**w, "layers.0.bias": torch.zeros(3)},
            r"'layers.0.bias' has shape \(3,\), and \(2,\) in the model",
        ),
    ],
)
def test_weights_that_do_not_fit_the_model_are_refused(change: object, message: str) -> None:
    model = Tiny()
    weights: Mapping[str, Tensor] = change({name: p.detach() for name, p in model.named_parameters()})  # type: ignore[operator]
    with pytest.raises(UsageError, match=message), blended(model, weights, weights, partition(model, 2)):
        pass
