"""NSPO's rule: what general inputs see of the weights stays, whatever the optimizer does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import WORDS
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from untaxed.checkpoints import load_model, load_tokenizer
from untaxed.errors import DataError, StoreError, Unsupported
from untaxed.optim import Pipeline
from untaxed.projections import NullSpace, Protect, covariances, linear_layers
from untaxed.projections._covariance import texts_of
from untaxed.sites import Host
from untaxed.weights import same, trainable

PROMPTS = [" ".join(WORDS[(i * j) % 28] for j in range(1, 3 + i % 5)) for i in range(12)]
FEW = Protect(threshold="rank", value=10)
Inputs = dict[str, torch.Tensor]


@pytest.fixture
def model(tiny_initial: Path) -> Any:
    return load_model(tiny_initial).train()


@pytest.fixture(scope="module")
def tokenizer(tiny_initial: Path) -> Any:
    return load_tokenizer(tiny_initial)


def inputs_of(model: Any, tokenizer: Any, prompts: list[str]) -> Inputs:
    """The slow way: every prompt alone, no padding; layer -> its inputs, ``(tokens, width)``."""
    found: dict[str, list[torch.Tensor]] = {}
    layers = linear_layers(model)
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: found.setdefault(name, []).append(args[0][0]))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        for prompt in prompts:
            model.eval()(torch.tensor([tokenizer(prompt)["input_ids"]]))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def train(model: Any, optimizer: Pipeline, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        ids = torch.randint(4, 30, (4, 9), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model.train()(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()


def built(
    model: Any, tokenizer: Any, protect: Protect = FEW, *, site: str = "displacement", **options: Any
) -> Pipeline:
    rule = NullSpace(PROMPTS, protect, site=site, **options).bind(model, Host(tokenizer=tokenizer))
    base = torch.optim.AdamW(model.named_parameters(), lr=1e-2, weight_decay=0.1)
    return Pipeline(base, **{site: rule})


def test_sums_over_padded_batches_are_those_over_single_texts(model: Any, tokenizer: Any) -> None:
    layers = linear_layers(model)
    texts = texts_of(model, tokenizer, PROMPTS, max_tokens=64, continuations=0, seed=0)
    expected = inputs_of(model, tokenizer, PROMPTS)
    for accumulate in ("float32", "float64"):
        found = covariances(model, layers, texts, accumulate=accumulate)
        assert found.tokens == sum(map(len, texts)) == len(expected["model.layers.0.mlp.up_proj"])
        for name, rows in expected.items():
            sums = found.sums[found.owners[name]]
            assert sums.dtype == getattr(torch, accumulate)
            torch.testing.assert_close(sums.float(), rows.T @ rows, rtol=1e-4, atol=1e-4)


def test_layers_with_one_input_share_its_sum_and_its_basis(model: Any, tokenizer: Any) -> None:
    found = FEW.subspaces(model, tokenizer, PROMPTS)
    block = "model.layers.1."
    attention = {id(found[f"{block}self_attn.{name}_proj"]) for name in "qkv"}
    feed = {id(found[f"{block}mlp.{name}_proj"]) for name in ("gate", "up")}
    alone = {id(found[f"{block}self_attn.o_proj"]), id(found[f"{block}mlp.down_proj"])}
    assert (len(attention), len(feed), len(attention | feed | alone)) == (1, 1, 4)
    assert found[f"{block}mlp.down_proj"].basis.shape == (64, 10)


def test_which_layers(model: Any) -> None:
    assert len(linear_layers(model)) == 14
    assert all("mlp" in name for name in linear_layers(model, "mlp"))
    assert list(linear_layers(model, "*.1.*.down_proj")) == ["model.layers.1.mlp.down_proj"]
    assert list(linear_layers(model, ["lm_head"])) == ["lm_head"]
    with pytest.raises(ValueError, match=r"layers: no linear layer is called '\*.down_prj'; did you mean"):
        linear_layers(model, ["*.down_prj"])
    with pytest.raises(Unsupported, match=r"no nn.Linear in numbered blocks, of 1 linear layers; name them"):
        linear_layers(nn.Linear(1, 1))


@pytest.mark.parametrize("every", [1, 3])
def test_outputs_on_general_inputs_stay_after_adamw_with_weight_decay(model: Any, tokenizer: Any, every: int) -> None:
    """The law: ‖(W − W₀) U‖ is rounding, and so is what each layer does to its protected inputs."""
    initial = {name: tensor.clone() for name, tensor in trainable(model).items()}
    seen = inputs_of(model, tokenizer, PROMPTS)
    protect = Protect(threshold="free_share", value=0.4)
    optimizer = built(model, tokenizer, protect, every=every)
    train(model, optimizer, 7)
    optimizer.flush()  # 7 is no multiple of 3
    rule = optimizer.rules[0]
    for layer, rows in seen.items():
        name = f"{layer}.weight"
        moved = trainable(model)[name] - initial[name]
        sub = rule.subspaces[name]
        protected = torch.eye(len(sub.basis)) - sub.remove(torch.eye(len(sub.basis)))
        inside = (rows @ protected) @ moved.T
        free = moved.norm() * rows.norm()
        assert inside.norm() < 1e-6 * free + 1e-5, layer
        assert moved.norm() > 1e-3 or sub.rank == len(sub.basis)
    assert not torch.equal(trainable(model)["model.embed_tokens.weight"], initial["model.embed_tokens.weight"])
    assert 0 < (rule.read() or rule.reading)["nspo/removed_share"] < 1


@pytest.mark.parametrize(("site", "low", "high"), [("update", 0, 1e-4), ("gradient", 0.1, 10)])
def test_a_projected_update_holds_and_a_projected_gradient_does_not_under_adam(
    model: Any, tokenizer: Any, site: str, low: float, high: float
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    before = trainable(model)[name].clone()
    optimizer = built(model, tokenizer, site=site)
    train(model, optimizer, 4)
    sub = optimizer.rules[0].subspaces[name]
    moved = trainable(model)[name] - before
    share = (moved - sub.remove(moved)).norm() / (moved.norm() * (sub.rank / 32) ** 0.5)  # 1: no preference
    assert low <= share <= high


@pytest.mark.parametrize("site", ["update", "gradient"])
def test_where_updates_or_gradients_are_projected_nothing_is_owed(model: Any, tokenizer: Any, site: str) -> None:
    """Frozen weights, weights at rate 0, and weights that were replaced stay what they are."""
    model.model.layers[0].requires_grad_(False)
    optimizer = built(model, tokenizer, site=site)
    train(model, optimizer, 2)
    optimizer.restart(model.parameters())
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer.flush()
    assert same(before, model.state_dict())


def test_only_protected_layers_keep_a_copy_of_their_initial_weights(model: Any, tokenizer: Any) -> None:
    optimizer = built(model, tokenizer, Protect(threshold="rank", value=4, layers="mlp"))
    train(model, optimizer, 1)
    kept = {name for name, own in optimizer._own.items() if "initial" in own}
    assert len(kept) == 6
    assert all("mlp" in name for name in kept)


def test_the_projection_acts_at_its_interval_only(model: Any, tokenizer: Any) -> None:
    plain = copy.deepcopy(model)
    optimizer = built(model, tokenizer, every=3)
    other = Pipeline(torch.optim.AdamW(plain.named_parameters(), lr=1e-2, weight_decay=0.1))
    for step in range(1, 4):
        train(model, optimizer, 1, first=step)
        train(plain, other, 1, first=step)
        assert same(trainable(model), trainable(plain)) == (step < 3)


def test_a_resume_within_an_interval_is_equal_to_the_bit(model: Any, tokenizer: Any) -> None:
    optimizer = built(model, tokenizer, every=3)
    train(model, optimizer, 4)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, 3, first=4)
    optimizer.flush()
    resumed = copy.deepcopy(model)
    resumed.load_state_dict(saved[0])
    again = built(resumed, tokenizer, every=3)
    again.load_state_dict(saved[1])
    train(resumed, again, 3, first=4)
    bases = {id(sub.basis) for sub in again.rules[0].subspaces.values()}
    assert len(bases) == 8  # shared again
    again.flush()
    assert same(trainable(model), trainable(resumed))
    before = {name: tensor.clone() for name, tensor in trainable(resumed).items()}
    again.flush()  # nothing is owed any more
    assert same(before, trainable(resumed))


@pytest.mark.parametrize(
    "other", [NullSpace(PROMPTS[:-1], FEW), NullSpace(PROMPTS, Protect(threshold="rank", value=9))]
)
def test_a_saved_state_of_other_prompts_or_settings_is_refused(model: Any, tokenizer: Any, other: NullSpace) -> None:
    optimizer = built(model, tokenizer)
    train(model, optimizer, 2)
    base = torch.optim.AdamW(model.named_parameters(), lr=1e-2)
    again = Pipeline(base, displacement=other.bind(model, Host(tokenizer=tokenizer)))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with pytest.raises(StoreError, match="the saved state belongs to other general prompts, or to other settings"):
        train(model, again, 1)


def test_a_layer_whose_weight_is_another_modules_too_is_refused(model: Any, tokenizer: Any) -> None:
    model.lm_head.weight = model.model.embed_tokens.weight
    assert len(linear_layers(model)) == 14
    with pytest.raises(Unsupported, match=r"the weight of 'lm_head' is that of 'model.embed_tokens' as well \(tied\)"):
        built(model, tokenizer, Protect(threshold="rank", value=4, layers=["lm_head", "*.down_proj"])).step()


def test_layers_that_share_or_compute_a_weight_are_refused_in_blocks_too(model: Any) -> None:
    blocks = model.model.layers
    blocks[1].mlp.up_proj.weight = blocks[0].mlp.up_proj.weight
    with pytest.raises(Unsupported, match=r"the weight of 'model.layers.0.mlp.up_proj' is that of 'model.layers.1.mlp"):
        linear_layers(model)
    blocks[1].mlp.up_proj.weight = nn.Parameter(blocks[0].mlp.up_proj.weight.detach().clone())
    nn.utils.parametrizations.weight_norm(blocks[1].mlp.up_proj)
    with pytest.raises(Unsupported, match=r"the weight of 'model.layers.1.mlp.up_proj' is computed from others"):
        linear_layers(model, "mlp")


def test_a_flush_right_after_a_resume_projects_what_is_owed(model: Any, tokenizer: Any) -> None:
    optimizer = built(model, tokenizer, every=3)
    train(model, optimizer, 2)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    optimizer.flush()
    resumed = copy.deepcopy(model)
    resumed.load_state_dict(saved[0])
    again = built(resumed, tokenizer, every=3)
    again.load_state_dict(saved[1])
    again.flush()
    assert same(trainable(model), trainable(resumed))


def test_continuations_are_the_models_own_and_count(model: Any, tokenizer: Any) -> None:
    short = texts_of(model, tokenizer, PROMPTS, max_tokens=3, continuations=0, seed=0)
    longer = texts_of(model, tokenizer, PROMPTS, max_tokens=3, continuations=5, seed=0)
    assert max(map(len, short)) == 3
    assert all(more[: len(less)] == less for less, more in zip(short, longer))
    assert sum(map(len, longer)) > sum(map(len, short))
    assert longer == texts_of(model, tokenizer, PROMPTS, max_tokens=3, continuations=5, seed=0)


def test_looking_leaves_no_trace(model: Any, tokenizer: Any) -> None:
    model.train()
    state = torch.get_rng_state()
    before = copy.deepcopy(model.state_dict())
    Protect(threshold="rank", value=3, continuations=3).subspaces(model, tokenizer, PROMPTS)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert same(before, model.state_dict())


def test_layers_without_a_free_direction_are_named_and_where_all_are_refused(model: Any, tokenizer: Any) -> None:
    some = Protect(threshold="rank", value=32, layers=["*.1.*"])  # all 32 of the narrow layers, half of down_proj's 64
    with pytest.warns(UserWarning, match=r"6 of 7 protected layers .*layers.1.self_attn.q_proj \(rank 32 of 32\)"):
        found = some.subspaces(model, tokenizer, PROMPTS)
    moved = torch.randn(5, 32)
    assert not found["model.layers.1.self_attn.q_proj"].remove(moved).any()
    every = Protect(threshold="rank", value=32, layers=["*.1.*q_proj"])
    with pytest.raises(Unsupported, match=r"no protected layer has a free direction, .*q_proj \(rank 32 of 32\)"):
        every.subspaces(model, tokenizer, PROMPTS)


def test_too_few_tokens_are_refused_for_a_rank_and_told_otherwise(model: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="have 2 tokens, fewer than the 10 directions that are to be protected"):
        FEW.subspaces(model, tokenizer, ["w1 w2"])
    with pytest.raises(DataError, match=r"layers.0.self_attn.q_proj': 10 directions .* the inputs span 3 of 32 beyond"):
        FEW.subspaces(model, tokenizer, ["w1 w2 w3"] * 9)  # enough tokens, and the same ones
    with pytest.warns(UserWarning, match="have 2 tokens and span at most so many of a layer's 64 input directions"):
        found = Protect().subspaces(model, tokenizer, ["w1 w2"])
    assert {sub.rank for sub in found.values()} <= {1, 2}


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "general prompts: there are none"),
        ("a text", "must be a list of texts, got str"),
        (None, "must be a list of texts, got NoneType"),
        (["a", {"prompt": "b"}], "general prompt 1 must be a text, got dict"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused(prompts: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        NullSpace(prompts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": []}, "layers must be 'blocks', 'mlp' or shell patterns"),
        ({"continuations": -1}, "continuations must be a whole number, at least 0"),
        ({"accumulate": "bfloat16"}, "accumulate must be one of float32, float64"),
        ({"threshold": "energy", "value": 2}, r"value must be in \(0, 1\]"),
        ({"max_tokens": 0}, "max_tokens must be a whole number"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Protect(**settings)


def test_what_is_missing_is_said(model: Any, tokenizer: Any) -> None:
    rule = NullSpace(PROMPTS, FEW)
    with pytest.raises(ValueError, match=r"no model to look into: call its bind\(model, Host"):
        train(model, Pipeline(torch.optim.SGD(model.named_parameters(), lr=0.1), displacement=rule), 1)
    with pytest.raises(DataError, match="general prompts need a tokenizer"):
        train(model, Pipeline(torch.optim.SGD(model.named_parameters(), lr=0.1), displacement=rule.bind(model)), 1)
    head = Pipeline(torch.optim.SGD([("lm_head.weight", model.lm_head.weight)], lr=0.1),
                    displacement=rule.bind(model, Host(tokenizer=tokenizer)))  # fmt: skip
    with pytest.raises(ValueError, match="the optimizer trains none of the 14 protected layers"):
        train(model, head, 1)
    narrow = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                          num_attention_heads=1, max_position_embeddings=4))  # fmt: skip
    with pytest.raises(DataError, match=r"a general prompt has .* tokens, the model's context 4; lower max_tokens"):
        FEW.subspaces(narrow, tokenizer, PROMPTS)
