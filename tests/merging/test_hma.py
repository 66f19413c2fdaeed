from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import built
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.heterogeneous import merged_loss
from torch import Tensor, nn
from two_processes import run_in_two

from untaxed.errors import DataError, Unsupported, UntaxedError, UsageError
from untaxed.merging import (
    AS_RELEASED,
    Partition,
    Tokens,
    best_by_reward,
    heterogeneous_average,
    learn_ratios,
    partition,
    ratio_gradient,
    token_batches,
    token_nll,
)
from untaxed.merging._hma import Moments, _schedule
from untaxed.merging._simplex import project, tangent
from untaxed.weights import same

Parents = tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]


def parents(name: str = "llama", dtype: torch.dtype = torch.float64) -> Parents:
    model, initial = built(name, seed=1, dtype=dtype), built(name, dtype=dtype)
    return model, dict(initial.named_parameters()), {k: v.detach().clone() for k, v in model.named_parameters()}


def sampled(aligned: nn.Module, rows: int = 24, *, seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of 2 to 4 tokens and what the model says after them, 3 to 6 tokens."""
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(3, 40, (2 + row % 3,), generator=generator).tolist() for row in range(rows)]
    responses = []
    for row, prompt in enumerate(prompts):
        ids = list(prompt)
        for _ in range(3 + row % 4):
            with torch.no_grad():
                logits = aligned(torch.tensor([ids])).logits[0, -1]
            ids.append(int(torch.multinomial((3 * logits).softmax(-1), 1, generator=generator)))
        responses.append(ids[len(prompt) :])
    return prompts, responses


def data(model: nn.Module, **arguments: Any) -> list[Tokens]:
    return token_batches(*sampled(model), **{"batch_size": 8, **arguments})


@pytest.mark.parametrize("rest_share", [0.2, None])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_the_gradient_is_that_of_merged_copies_and_of_finite_differences(name: str, rest_share: float | None) -> None:
    model, initial, aligned = parents(name)
    cut, batch = partition(model, 3), data(model)[0]
    ratios = cut.named([0.1, 0.35, 0.6])
    loss, gradient = ratio_gradient(model, initial, aligned, cut, batch, ratios, rest_share=rest_share, rows_at_once=3)
    of = {tensor: number for number, block in enumerate(cut.blocks) for tensor in block.tensors}
    values = torch.tensor(list(ratios.values()), dtype=torch.float64, requires_grad=True)
    rest = values.mean() if rest_share is None else torch.tensor(rest_share, dtype=torch.float64)
    slow = merged_loss(model, initial, aligned, of, values, rest, batch.input_ids, batch.response_mask)
    slow.backward()
    assert loss == pytest.approx(slow.item(), abs=1e-10)
    if rest_share is not None:  # autograd gives the padding token's embedding no gradient, although it is read
        assert list(gradient.values()) == pytest.approx(values.grad.tolist(), abs=1e-8)
    step, close = (1e-5, 1e-6) if name == "gpt2" else (1e-2, 3e-4)  # the others' norms are in float32 within
    for block in cut.names:
        around = []
        for signed in (step, -step):
            near = {**ratios, block: ratios[block] + signed}
            around.append(ratio_gradient(model, initial, aligned, cut, batch, near, rest_share=rest_share)[0])
        assert gradient[block] == pytest.approx((around[0] - around[1]) / (2 * step), abs=close)


def test_a_ratio_that_moves_changes_the_forward_pass() -> None:
    """Ratios that the forward pass does not see would be learned from a gradient that is always the same."""
    model, initial, aligned = parents()
    cut, batch = partition(model, 3), data(model)[0]
    losses = {
        block: ratio_gradient(model, initial, aligned, cut, batch, {**cut.equal(0.2), block: 0.3}, rest_share=0.2)[0]
        for block in cut.names
    }
    assert len(set(losses.values())) == 3


def test_ratios_that_are_learned_say_better_what_the_aligned_model_says() -> None:
    model, initial, aligned = parents()
    with torch.no_grad():  # the last layers hardly moved in alignment: returning them costs nothing
        for name, tensor in aligned.items():
            if ".2." in name or ".3." in name:
                tensor.copy_(initial[name] + 0.001 * (tensor - initial[name]))
    cut = partition(model, 2)
    from untaxed.merging import blended

    with blended(model, aligned, aligned, cut) as blend:
        blend.write(cut.equal(0.0))
        batches, held_out = data(model), data(model, seed=1)[:1]
    learned = learn_ratios(
        model, initial, aligned, cut, batches, initial_share=0.4, epochs=20, held_out=held_out, learning_rate=0.05
    )
    assert learned.ratios["layers 0-1"] < 0.05
    assert learned.ratios["layers 2-3"] > 0.75
    assert learned.held_out is not None
    assert learned.held_out["result"] < learned.held_out["start"]
    for step in learned.steps:
        assert abs(np.mean(step.ratios) - 0.4) < 1e-9
        assert all(0 <= ratio <= 1 for ratio in step.ratios)
    assert learned.steps[0].ratios == (0.4, 0.4)
    assert json.loads(json.dumps(learned.record()))["ratios"] == learned.ratios


@pytest.mark.parametrize("weighting", ["blocks", "layers", "parameters"])
def test_the_mean_is_held_as_the_partition_weighs_it(weighting: Any) -> None:
    model, initial, aligned = parents()
    cut = partition(model, [[0], [1, 2, 3]], apart=True, weighting=weighting)
    learned = learn_ratios(model, initial, aligned, cut, data(model), initial_share=0.3, learning_rate=0.3)
    assert abs(cut.mean(learned.ratios) - 0.3) < 1e-9
    assert len(set(learned.ratios.values())) > 1


@given(st.lists(st.lists(st.floats(-1e20, 1e20), min_size=3, max_size=3), min_size=1, max_size=8), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_ratios_satisfy_the_constraints_for_any_gradient(gradients: list[list[float]], share: float) -> None:
    ratios, moments, weights = np.full(3, share), Moments(np.zeros(3)), [1.0, 5.0, 2.0]
    for gradient in gradients:
        step = moments.step(tangent(np.array(gradient), weights))
        ratios = project(ratios - 0.5 * step, share, weights=weights)
        assert abs(np.average(ratios, weights=weights) - share) < 1e-6
        assert ((ratios >= 0) & (ratios <= 1)).all()


def test_the_step_rests_where_the_loss_is_stationary_on_the_constraint() -> None:
    """A quadratic with slopes of very different size: one second moment for each ratio would miss its minimum."""
    scales, wanted = np.array([100.0, 1.0, 0.01]), np.array([0.5, 0.1, 0.3])
    ratios, moments = np.full(3, 0.2), Moments(np.zeros(3))
    for number in range(4000):
        gradient = tangent(scales * (ratios - wanted))
        ratios = project(ratios - 0.05 * _schedule(number, 4000, 0.0) * moments.step(gradient), 0.2)
    # stationary on the mean: scales * (r - wanted) is the same for every ratio inside the bounds, or it is at a bound
    assert ratios == pytest.approx([0.5 - 0.004, 0.1, 0.0], abs=0.01)


def test_everything_lent_comes_back() -> None:
    model, initial, aligned = parents()
    model.train()
    model.model.norm.eval()
    model.lm_head.weight.requires_grad_(False)
    kept = torch.randn_like(model.model.norm.weight)
    model.model.norm.weight.grad = kept
    own, modes = copy.deepcopy(model.state_dict()), [part.training for part in model.modules()]
    before = copy.deepcopy((dict(initial), dict(aligned)))
    batches, random = data(built("llama", seed=1, dtype=torch.float64)), torch.get_rng_state()
    learn_ratios(model, initial, aligned, partition(model, 2), batches, initial_share=0.2)
    assert same(model.state_dict(), own)
    assert [part.training for part in model.modules()] == modes
    assert not model.lm_head.weight.requires_grad
    assert model.model.norm.weight.grad is kept
    assert all(p.grad is None for name, p in model.named_parameters() if name != "model.norm.weight")
    assert same(initial, before[0])
    assert same(aligned, before[1])
    assert torch.equal(random, torch.get_rng_state())
    assert model.model.embed_tokens.padding_idx == 0
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_two_runs_are_equal_bit_for_bit() -> None:
    model, initial, aligned = parents(dtype=torch.float32)
    arguments = {"initial_share": 0.2, "epochs": 3}
    first, second = (learn_ratios(model, initial, aligned, partition(model, 3), data(model), **arguments) for _ in "ab")
    assert (first.ratios, first.steps) == (second.ratios, second.steps)


def test_bfloat16_is_merged_once_and_its_gradient_is_close() -> None:
    model, initial, aligned = parents()
    cut, batch = partition(model, 2), data(model)[0]
    exact = ratio_gradient(model, initial, aligned, cut, batch, cut.equal(0.2))[1]
    half = ({name: tensor.bfloat16() for name, tensor in weights.items()} for weights in (initial, aligned))
    found = ratio_gradient(model.bfloat16(), *half, cut, batch, cut.equal(0.2))[1]
    assert list(found.values()) == pytest.approx(list(exact.values()), abs=0.1 * max(map(abs, exact.values())))


def test_scope_free_bounds_pull_and_loss_change_something() -> None:
    model, initial, aligned = parents()
    cut, batches = partition(model, 2), data(model)

    def learned(**arguments: Any) -> Any:
        return learn_ratios(model, initial, aligned, cut, batches, **{"initial_share": 0.3, "epochs": 5, **arguments})

    plain = learned()
    assert learned(scope="all").ratios != plain.ratios
    assert learned(low=0.25, high=0.32).ratios != plain.ratios
    assert all(0.25 <= ratio <= 0.35 for ratio in learned(low=0.25, high=0.35).ratios.values())
    free = learned(free=True)
    assert free.initial_share < 0.3  # the aligned model says its own words best
    assert free.initial_share == pytest.approx(np.mean(list(free.ratios.values())))
    assert max(abs(r - 0.3) for r in learned(pull=100.0).ratios.values()) < max(
        abs(r - 0.3) for r in plain.ratios.values()
    )
    assert learned(warmup=0.9).ratios != plain.ratios
    assert learned(learning_rate=0.001).ratios != plain.ratios
    start = learned(start=cut.named([0.0, 0.6])).steps[0].ratios
    assert start == pytest.approx((0.0, 0.6))
    labelled = learned(loss=lambda module, tokens: (-token_nll(module, tokens)[0], 7))
    assert np.sign(labelled.ratios["layers 0-1"] - 0.3) == -np.sign(plain.ratios["layers 0-1"] - 0.3)


def test_rows_at_once_and_padding_do_not_matter() -> None:
    model, initial, aligned = parents()
    cut, batch = partition(model, 2), data(model, batch_size=24)[0]
    whole = ratio_gradient(model, initial, aligned, cut, batch, cut.equal(0.2))
    parts = ratio_gradient(model, initial, aligned, cut, batch, cut.equal(0.2), rows_at_once=5)
    parts_of = (batch.input_ids, batch.attention_mask, batch.response_mask)
    left = Tokens(*(torch.cat([torch.zeros(24, 3, dtype=torch.long), part], 1) for part in parts_of))
    padded = ratio_gradient(model, initial, aligned, cut, left, cut.equal(0.2))
    assert whole[0] == pytest.approx(parts[0], abs=1e-12)
    assert list(whole[1].values()) == pytest.approx(list(parts[1].values()), abs=1e-10)
    assert whole[0] == pytest.approx(padded[0], abs=1e-9)


def test_the_default_rate_moves_ratios_and_the_papers_does_not() -> None:
    model, initial, aligned = parents(dtype=torch.float32)
    batches = data(model) * 30
    ends = {
        rate: learn_ratios(model, initial, aligned, partition(model, 3), batches, initial_share=0.2, **rate_of)
        for rate, rate_of in {"ours": {}, "paper's": {"learning_rate": 2e-5}}.items()
    }
    moved = {rate: max(abs(ratio - 0.2) for ratio in end.ratios.values()) for rate, end in ends.items()}
    assert moved["ours"] > 0.05
    assert moved["paper's"] < 0.005


def test_the_result_is_an_average_that_one_can_take() -> None:
    model, initial, aligned = parents()
    cut = partition(model, 3, policies=AS_RELEASED)
    learned = learn_ratios(model, initial, aligned, cut, data(model), initial_share=0.2)
    merged = heterogeneous_average(initial, aligned, learned.ratios, cut, rest_share=learned.initial_share)
    assert torch.equal(merged["model.norm.weight"], initial["model.norm.weight"])


def test_two_processes_are_one() -> None:
    """Two gloo processes, each with its part of the rows; the laws are asserted in the worker."""
    run_in_two(Path(__file__).with_name("hma_worker.py"))


def made(**changes: Any) -> tuple[Parents, Partition, dict[str, Any]]:
    model, initial, aligned = parents()
    return (model, initial, aligned), partition(model, 2), {"initial_share": 0.2, "batches": data(model)[:1], **changes}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batches": []}, DataError, "no batches to learn ratios from"),
        ({"initial_share": 1.2}, ValueError, r"initial_share must be in \[0, 1\], got 1.2"),
        ({"low": 0.3}, ValueError, "within .* cannot have the mean initial_share = 0.2"),
        ({"learning_rate": math.nan}, ValueError, "learning_rate must be a finite number"),
        ({"learning_rate": -1.0}, UsageError, "learning_rate must not be negative"),
        ({"epochs": 0}, UsageError, "epochs must be at least 1"),
        ({"scope": "responses"}, UsageError, "unknown scope 'responses'; did you mean 'response'"),
        ({"rows_at_once": 0}, UsageError, "rows_at_once must be at least 1"),
        ({"start": {"layers 0-1": 0.1}}, UsageError, "block 'layers 2-3' has no ratio"),
        (
            {"loss": lambda model, tokens: (token_nll(model, tokens)[0] * math.nan, 1)},
            UntaxedError,
            "step 0: .* finite",
        ),
        ({"loss": lambda model, tokens: (token_nll(model, tokens)[0], 0)}, DataError, "step 0: no token counts"),
    ],
)
def test_what_cannot_be_learned_from_is_one_line(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    (model, initial, aligned), cut, arguments = made(**changes)
    own = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        learn_ratios(model, initial, aligned, cut, arguments.pop("batches"), **arguments)
    assert same(model.state_dict(), own)


def test_a_sharded_model_is_refused_with_the_way_out() -> None:
    class Sharded(Tensor):
        def to_local(self) -> Tensor:
            return self

    (model, initial, aligned), cut, arguments = made()
    shard = nn.Parameter(model.lm_head.weight.detach().as_subclass(Sharded))  # type: ignore[arg-type]
    model.lm_head.weight = shard
    with pytest.raises(Unsupported, match=r"sharded .* in DDP"):
        learn_ratios(model, initial, aligned, cut, **arguments)


def test_batches_cover_every_row_once() -> None:
    prompts, responses = [[1] * (n % 3 + 1) for n in range(10)], [[n + 2] * (n % 4 + 1) for n in range(10)]
    batches = token_batches(prompts, responses, batch_size=4, seed=3)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    counted = sorted(token for batch in batches for token in batch.input_ids[batch.response_mask.bool()].tolist())
    assert counted == sorted(token for response in responses for token in response)
    assert sum(int(batch.attention_mask.sum()) for batch in batches) == sum(map(len, prompts)) + len(counted)
    with pytest.raises(DataError, match="the response of row 1 has no token"):
        token_batches([[1], [1]], [[2], []])
    with pytest.raises(DataError, match="the prompt of row 0 has no token"):
        token_batches([[]], [[2]])
    with pytest.raises(DataError, match="one shape"):
        Tokens(torch.zeros(1, 2), torch.zeros(1, 3), torch.zeros(1, 2))


def test_the_best_samples_are_kept_in_their_order() -> None:
    assert best_by_reward([3.0, 1.0, 3.0, 2.0], keep=3) == [0, 2, 3]
    assert best_by_reward([1.0]) == [0]
    with pytest.raises(DataError, match="the reward of sample 1 is nan"):
        best_by_reward([1.0, math.nan])
