"""Models with adapters are refused wherever their factors would be averaged one by one; merged, they are averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import built
from torch import Tensor, nn

from untaxed import average, methods
from untaxed.errors import Unsupported
from untaxed.merging import blended, heterogeneous_average, learn_ratios, partition, token_batches

SAID = r"is an adapter's, whose factors .* merge_and_unload\(\) first, or give .* checkpoints, MODEL\+ADAPTER"
PLAIN = {f"h.{n}.w.weight": torch.zeros(2, 2) for n in range(2)}


def adapted(seed: int, **settings: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    wanted = {"r": 2, "target_modules": ["q_proj", "embed_tokens"], "init_lora_weights": False}
    return get_peft_model(built("llama"), LoraConfig(**wanted | settings))


@pytest.mark.parametrize("settings", [{}, {"use_dora": True, "target_modules": ["q_proj"]}])
def test_adapters_are_refused_and_merged_ones_averaged(settings: dict[str, Any]) -> None:
    first, second = adapted(1, **settings), adapted(2, **settings)
    before = {name: value.clone() for name, value in second.state_dict().items()}
    for models in ((first, second), (built("llama"), second), (first.state_dict(), second.state_dict())):
        with pytest.raises(Unsupported, match=SAID):
            average(*models, initial_share=0.5, in_place=True)
    assert all(torch.equal(value, before[name]) for name, value in second.state_dict().items())
    with pytest.raises(Unsupported, match=SAID):
        partition(first, 2, apart=True)
    merged = first.merge_and_unload().state_dict(), second.merge_and_unload().state_dict()
    made = average(*merged, initial_share=0.5)
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(made[name], (merged[0][name] + merged[1][name]) / 2)


def lent(model: Any, weights: Any) -> None:
    with blended(model, weights, weights, partition(PLAIN, 2)):
        pass


def learned(model: Any, weights: Any) -> None:
    batches = token_batches([[1]], [[2]])
    learn_ratios(model, weights, weights, partition(PLAIN, 2), batches, initial_share=0.2)


def row(name: str, **settings: Any) -> Callable[[Any, Any], Any]:
    return lambda _, weights: methods.build(name, settings).after(weights, weights)


@pytest.mark.parametrize(
    "use",
    [
        lambda _, weights: average(weights, weights, initial_share=0.2),
        lambda _, weights: partition(weights, 2),
        lambda _, weights: partition({name: tuple(value.shape) for name, value in weights.items()}, {"all": ".*"}),
        lambda _, weights: heterogeneous_average(weights, weights, partition(PLAIN, 2).equal(0.2), partition(PLAIN, 2)),
        lent,
        learned,
        row("averaging", initial_share=0.2),
        row("extrapolation", initial_share=-0.2),
        row("slerp", initial_share=0.2),
        row("ties", density=0.5),
        row("dare", density=0.5),
        row("part_averaging", block=0, blocks=2),
        lambda _, weights: methods.build("model_stock", {"members": 2}).merge(weights, [weights, weights]),
        lambda _, weights: methods.build("warp", {"members": 2}).merge(weights, [weights, weights]),
    ],
)
@pytest.mark.parametrize(
    "factor", ["lora_A.default.weight", "lora_embedding_B.default", "lora_magnitude_vector", "hada_w1_a"]
)
def test_nothing_averages_factors_apart(use: Callable[[Any, Any], Any], factor: str) -> None:
    weights: dict[str, Tensor] = {**PLAIN, f"h.0.w.{factor}": torch.ones(1, 2)}
    with pytest.raises(Unsupported, match=rf"'h.0.w.{factor}' {SAID}"):
        use(nn.Linear(1, 1), weights)
