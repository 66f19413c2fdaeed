"""OGPSA's rule around any optimizer: what it takes out, when it looks, what it leaves alone."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from untaxed.checkpoints import load_model, load_tokenizer
from untaxed.errors import DataError, RunFailed, StoreError
from untaxed.optim import Pipeline, plain_name
from untaxed.projections import Orthogonal, reference_gradients, reference_sets
from untaxed.sites import Host
from untaxed.weights import same, trainable


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 2))


def data(seed: int, rows: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, generator=generator), torch.randn(rows, 2, generator=generator)


def squared(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


SETS = {"first": [data(100), data(101)], "second": [data(102)]}


def built(model: nn.Module, sets: Any = SETS, *, lr: float = 0.05, site: str = "gradient", **options: Any) -> Pipeline:
    rule = Orthogonal(sets, loss=squared, site=site, **options).bind(model)
    base = torch.optim.AdamW(model.named_parameters(), lr=lr, weight_decay=0.1)
    return Pipeline(base, **{site: rule})


def step(model: nn.Module, optimizer: Any, number: int, parts: int = 1) -> None:
    optimizer.zero_grad()
    inputs, targets = data(number)
    for x, y in zip(inputs.chunk(parts), targets.chunk(parts)):
        (squared(model, (x, y)) / parts).backward()
    optimizer.step()


def gradients(model: nn.Module, batches: Any) -> dict[str, torch.Tensor]:
    """The plain way: autograd, in evaluation mode, the mean over batches."""
    twin = copy.deepcopy(model).eval()
    loss = sum(squared(twin, batch) for batch in batches) / len(batches)
    return dict(zip(dict(twin.named_parameters()), torch.autograd.grad(loss, list(twin.parameters()))))


def gradients_of(model: nn.Module, batches: Any, names: list[str]) -> dict[str, torch.Tensor]:
    """Of some parameters, where others need none."""
    twin = copy.deepcopy(model).eval()
    loss = sum(squared(twin, batch) for batch in batches) / len(batches)
    return dict(zip(names, torch.autograd.grad(loss, [twin.get_parameter(name) for name in names])))


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_the_gradient_becomes_orthogonal_to_every_reference_gradient(scope: str) -> None:
    model = network()
    references = [gradients(model, batches) for batches in SETS.values()]
    optimizer = built(model, scope=scope)
    before = trainable(model)
    step(model, optimizer, 1)
    assert set(before) == set(references[0])
    for one in references:
        products = {name: (p.grad * one[name]).sum() for name, p in model.named_parameters()}
        assert abs(sum(products.values())) < 1e-6
        if scope == "tensor":
            assert max(map(abs, products.values())) < 1e-6
        else:
            assert max(map(abs, products.values())) > 1e-4
    reading = optimizer.rules[0].reading
    assert 0 < reading["ogpsa/removed_share"] < 1
    assert reading["ogpsa/removed_share"] == pytest.approx(reading["ogpsa/tax_rate"])


def test_reference_gradients_are_those_of_the_mean_loss_and_leave_no_trace() -> None:
    model = network().train()
    given = reference_sets(SETS, loss=squared)
    squared(model, data(1)).backward()
    own = [p.grad for p in model.parameters()]
    copies = [gradient.clone() for gradient in own]
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    found = reference_gradients(model, given)
    for one, batches in zip(found, SETS.values()):
        for name, expected in gradients(model, batches).items():
            torch.testing.assert_close(one[plain_name(name)], expected)
    assert all(p.grad is mine for p, mine in zip(model.parameters(), own))
    assert all(torch.equal(a, b) for a, b in zip(own, copies))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_one_projection_of_what_was_accumulated_equals_one_of_every_micro_batch(scope: str) -> None:
    whole, parts = network(), network()
    for model in (whole, parts):
        model[1].p = 0.0
    ours, plain = built(whole, scope=scope), torch.optim.AdamW(parts.parameters(), lr=0.05, weight_decay=0.1)
    step(whole, ours, 1, parts=4)
    total = {name: torch.zeros_like(p) for name, p in parts.named_parameters()}
    inputs, targets = data(1)
    for x, y in zip(inputs.chunk(4), targets.chunk(4)):
        parts.zero_grad()
        (squared(parts, (x, y)) / 4).backward()
        rule = Pipeline(torch.optim.SGD(parts.named_parameters(), lr=0.0), gradient=Orthogonal(SETS, loss=squared,
                        scope=scope).bind(parts))  # fmt: skip
        rule.step()  # at rate 0: projects the micro-batch's gradient, and moves nothing
        for name, p in parts.named_parameters():
            total[name] += p.grad
    for name, p in parts.named_parameters():
        p.grad = total[name]
    plain.step()
    for name, tensor in trainable(whole).items():
        torch.testing.assert_close(tensor, trainable(parts)[name], rtol=1e-4, atol=1e-5)


def test_it_looks_before_the_first_step_and_every_few_at_the_weights_of_then(monkeypatch: pytest.MonkeyPatch) -> None:
    model, looks = network(), []
    import untaxed.projections._orthogonal as module

    inner = module.reference_gradients

    def seen(model: nn.Module, sets: Any, *, step: int) -> Any:
        looks.append((step, trainable(model)["0.weight"].clone()))
        return inner(model, sets, step=step)

    monkeypatch.setattr(module, "reference_gradients", seen)
    optimizer = built(model, refresh_every=3)
    expected = []
    for number in range(1, 8):
        if number in (1, 4, 7):
            expected.append(trainable(model)["0.weight"].clone())
        step(model, optimizer, number)
    assert [at for at, _ in looks] == [1, 4, 7]
    assert all(torch.equal(weights, other) for (_, weights), other in zip(looks, expected))


@pytest.mark.parametrize("site", ["gradient", "update"])
@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_with_conflict_a_step_does_not_raise_a_reference_loss(site: str, scope: str) -> None:
    """At first order: the inner product of the step with each reference gradient is at most 0."""
    kept = 0
    for seed in range(4):
        model = network(seed)
        references = [gradients(model, batches) for batches in SETS.values()]
        before = {name: tensor.clone() for name, tensor in trainable(model).items()}
        optimizer = built(model, site=site, scope=scope, when="conflict")
        step(model, optimizer, seed)
        if site == "update":
            moved = {name: tensor - before[name] for name, tensor in trainable(model).items()}
        else:
            moved = {name: -p.grad for name, p in model.named_parameters()}
        for one in references:
            products = torch.stack([(moved[name] * one[name]).sum() for name in moved])
            assert (products.max() if scope == "tensor" else products.sum()) < 1e-6
            kept += int((products < -1e-6).sum())
        reading = optimizer.rules[0].reading
        assert reading["ogpsa/removed_share"] <= reading["ogpsa/tax_rate"] + 1e-9
    assert kept, "steps that lower a reference loss are left alone"


def test_an_update_is_orthogonal_where_a_gradient_before_adam_is_not() -> None:
    products = {}
    for site in ("gradient", "update"):
        model = network()
        reference = gradients(model, SETS["first"])
        before = {name: tensor.clone() for name, tensor in trainable(model).items()}
        step(model, built(model, site=site), 1)
        products[site] = max(
            abs(((tensor - before[name]) * reference[name]).sum()) for name, tensor in trainable(model).items()
        )
    assert products["update"] < 1e-6 < 1e-4 < products["gradient"]


def test_far_from_every_reference_nothing_is_taken_out() -> None:
    """Only the first layer's weights are in the reference; the others move as under the plain optimizer."""
    model, plain = network(), network()
    model[1].p = plain[1].p = 0.0
    only = {"first": [data(100)]}
    rule = Orthogonal(only, loss=lambda model, batch: model[0].weight.square().sum()).bind(model)
    step(model, Pipeline(torch.optim.SGD(model.named_parameters(), lr=0.1), gradient=rule), 1)
    step(plain, torch.optim.SGD(plain.parameters(), lr=0.1), 1)
    ours, theirs = trainable(model), trainable(plain)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == ["0.weight"]


def test_the_state_holds_the_directions_and_goes_on_to_the_bit() -> None:
    straight = network()
    straight[1].p = 0.0
    optimizer = built(straight, refresh_every=3, scope="model")
    resumed = None
    for number in range(1, 9):
        step(straight, optimizer, number)
        if number == 5:  # in the middle of an interval: the basis is that of step 4
            saved = copy.deepcopy((straight.state_dict(), optimizer.state_dict()))
            resumed = network(1)
            resumed[1].p = 0.0
            resumed.load_state_dict(saved[0])
            other = built(resumed, refresh_every=3, scope="model")
            other.load_state_dict(saved[1])
        elif number > 5:
            assert resumed is not None
            step(resumed, other, number)
    assert resumed is not None
    assert same(trainable(straight), trainable(resumed))


def test_half_precision_weights_are_projected_in_float32() -> None:
    model = network().bfloat16()
    sets = {name: [tuple(t.bfloat16() for t in batch) for batch in batches] for name, batches in SETS.items()}
    optimizer = built(model, sets)
    (squared(model, tuple(t.bfloat16() for t in data(1)))).backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
    assert {tensor.dtype for tensor in trainable(model).values()} == {torch.bfloat16}
    for name, p in model.named_parameters():
        state = optimizer._own[name]["gradient.0"]
        assert state["direction.0"].dtype == torch.float32
        for number in range(len(SETS)):  # what rounding to bfloat16 leaves along a direction, of what was there
            along = [float((one.float() * state[f"direction.{number}"]).sum()) for one in (before[name], p.grad)]
            assert abs(along[1]) < 4e-3 * before[name].float().norm()
        assert not torch.equal(before[name], p.grad)


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_parameters_of_other_optimizers_and_frozen_ones_are_no_matter(scope: str) -> None:
    model = network()
    model[3].bias.requires_grad_(False)
    frozen = model[3].bias.clone()
    rule = Orthogonal(SETS, loss=squared, scope=scope).bind(model)
    named = [(name, p) for name, p in model.named_parameters() if name != "0.bias"]
    others = torch.optim.SGD([model[0].bias], lr=0.1)
    references = [
        gradients_of(model, batches, [name for name, p in named if p.requires_grad]) for batches in SETS.values()
    ]
    step(model, Pipeline(torch.optim.SGD(named, lr=0.1), gradient=rule), 1)
    others.step()
    for one in references:
        assert abs(sum((model.get_parameter(name).grad * one[name]).sum() for name in one)) < 1e-6
    assert torch.equal(model[3].bias, frozen)


def free_part(vector: torch.Tensor, references: list[torch.Tensor], when: str) -> torch.Tensor:
    """The slow way: without its part in the span of all references, or of those that it or then its rest is against."""
    chosen = [when == "always" for _ in references]
    rest = vector
    for _ in range(len(references) + 1):
        if any(chosen):
            span = torch.stack([one for one, taken in zip(references, chosen) if taken], 1)
            rest = vector - span @ torch.linalg.lstsq(span, vector.unsqueeze(1)).solution.squeeze(1)
        chosen = [taken or bool(one @ rest < -1e-9) for one, taken in zip(references, chosen)]
    return rest


@pytest.mark.parametrize("site", ["gradient", "update"])
@pytest.mark.parametrize("when", ["always", "conflict"])
def test_over_the_whole_model_what_moves_is_projected_where_some_parameters_do_not(site: str, when: str) -> None:
    """An expert that no token of a batch went to: the references count by what lies in the others; then all move."""
    taken = set()
    for seed in range(8):
        model = network(seed).double()
        model[1].p = 0.0
        sets = {name: [tuple(t.double() for t in batch) for batch in given] for name, given in SETS.items()}
        references = [gradients(model, batches) for batches in sets.values()]
        rule = Orthogonal(sets, loss=squared, scope="model", site=site, when=when).bind(model)
        optimizer = Pipeline(torch.optim.SGD(model.named_parameters(), lr=1.0), **{site: rule})
        for names in (["0.bias", "3.weight", "3.bias"], list(trainable(model))):
            before = {name: tensor.clone() for name, tensor in trainable(model).items()}
            optimizer.zero_grad()
            squared(model, tuple(t.double() for t in data(seed))).backward()
            for name, p in model.named_parameters():
                p.grad = p.grad if name in names else None
            given = torch.cat([model.get_parameter(name).grad.flatten() for name in names])
            optimizer.step()
            moved = torch.cat([(before[name] - model.get_parameter(name).detach()).flatten() for name in names])
            flat = [torch.cat([one[name].flatten() for name in names]) for one in references]
            torch.testing.assert_close(moved, free_part(given, flat, when), rtol=1e-4, atol=1e-6)
            taken.add(tuple(bool(one @ given < 0) for one in flat))
    assert len(taken) > 2  # against neither, one, or both


@pytest.mark.parametrize("site", ["gradient", "update"])
def test_a_warm_up_that_begins_at_rate_0_and_a_step_without_gradients_are_no_matter(site: str) -> None:
    model = network()
    optimizer = built(model, site=site)
    optimizer.step()  # no gradient anywhere: nothing happens
    optimizer.param_groups[0]["lr"] = 0.0
    before = {name: tensor.clone() for name, tensor in trainable(model).items()}
    step(model, optimizer, 1)
    assert same(before, trainable(model))
    optimizer.param_groups[0]["lr"] = 0.05
    step(model, optimizer, 2)
    assert not same(before, trainable(model))
    assert 0 < optimizer.rules[0].reading["ogpsa/removed_share"] < 1


@pytest.mark.parametrize(
    "other",
    [
        {**SETS, "third": [data(103)]},
        {"first": SETS["first"], "other": SETS["second"]},
        {"first": SETS["first"], "second": [data(102), data(103)]},
    ],
)
def test_a_saved_state_of_other_sets_is_refused(other: Any) -> None:
    model = network()
    optimizer = built(model)
    step(model, optimizer, 1)
    again = built(model, other)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with pytest.raises(StoreError, match="the saved state belongs to other reference sets or scope; resume"):
        step(model, again, 2)


@pytest.mark.parametrize("loss", ["ce", "preference"])
def test_fields_of_a_row_that_do_not_count_are_left_alone(loss: str, tiny_initial: Path) -> None:
    tokenizer = load_tokenizer(tiny_initial)
    pair = {"prompt": "w1", "chosen": "w2 w3", "rejected": "w4"}
    rows = [pair] if loss == "preference" else [pair, {"prompt": "w5", "completion": "w6"}, {"text": "w7 w8"}]
    more = [{"completion": "w9 w9 w9", **pair}]
    if loss == "ce":
        more += [{"chosen": "w9", **rows[1]}, {"prompt": "w9", "completion": None, **rows[2]}]
    one, other = (reference_sets({"a": given}, loss=loss, tokenizer=tokenizer)[0] for given in (rows, more))
    model = load_model(tiny_initial)
    with torch.no_grad():
        values = [sum(float(each.loss(model, batch)) * each.weight for batch in each.batches) for each in (one, other)]
    assert values[0] == pytest.approx(values[1])


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (None, "reference_sets must be a mapping, name -> rows, with at least one set, got nothing"),
        ({}, "got an empty mapping"),
        ({"facts": []}, "reference set 'facts' is empty: it protects nothing"),
        ({"facts": "a text"}, "reference set 'facts' must be a list of rows, got a str"),
        (
            {"facts": [{"question": "a"}]},
            "'facts', row 0: expected prompt and completion, or .* got the fields question",
        ),
        ({"facts": ["a", {"prompt": "b", "completion": 3}]}, "'facts', row 1: completion must be a text, got a int"),
        ({"facts": [{"prompt": "b", "completion": " "}]}, "'facts', row 0: completion is empty"),
    ],
)
def test_sets_that_cannot_be_used_are_refused(sets: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Orthogonal(sets)


def test_a_preference_loss_needs_pairs() -> None:
    with pytest.raises(DataError, match="'facts', row 0: loss 'preference' needs prompt, chosen and rejected"):
        Orthogonal({"facts": [{"prompt": "a", "completion": "b"}]}, loss="preference")
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    with pytest.raises(DataError, match="'facts', row 1: chosen equals rejected, whose loss has no gradient"):
        Orthogonal({"facts": [pair, {**pair, "rejected": "b"}]}, loss="preference")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"refresh_every": 0}, "refresh_every must be a whole number, at least 1, got 0"),
        ({"scope": "layer"}, "scope must be one of tensor, model, got 'layer'"),
        ({"when": "never"}, "when must be one of always, conflict"),
        ({"site": "displacement"}, "site must be one of gradient, update"),
        ({"loss": "mse"}, "loss must be one of ce, preference, or a function"),
        ({"tolerance": 1.0}, r"tolerance must be in \[0, 1\), got 1.0"),
        ({"samples": 0}, "samples must be a whole number"),
        ({"max_tokens": 1}, "max_tokens must be a whole number, at least 2"),
        ({"beta": 0.0}, "beta must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Orthogonal({"texts": ["a"]}, **settings)


def test_parallel_sets_are_named_once_and_the_rest_goes_on() -> None:
    model = network()
    optimizer = built(model, dict.fromkeys(("first", "again", "third"), SETS["first"]), refresh_every=1)
    with pytest.warns(
        UserWarning, match="adds no direction at step 1: its gradient is parallel to those before"
    ) as said:
        step(model, optimizer, 1)
    assert [str(one.message).split()[2] for one in said] == ["'again'", "'third'"]
    step(model, optimizer, 2)  # and says nothing more: warnings are errors


def test_a_loss_without_gradient_is_named_and_where_none_has_one_refused() -> None:
    model = network()
    flat = {"flat": [0.0], "first": [1.0]}
    loss = lambda model, batch: batch * sum(p.square().sum() for p in model.parameters())  # noqa: E731
    rule = Orthogonal(flat, loss=loss).bind(model)
    with pytest.warns(UserWarning, match="reference set 'flat' adds no direction at step 1: its gradient is zero"):
        step(model, Pipeline(torch.optim.SGD(model.named_parameters(), lr=0.1), gradient=rule), 1)
    rule = Orthogonal({"flat": [0.0]}, loss=loss).bind(model)
    before = {name: tensor.clone() for name, tensor in trainable(model).items()}
    with pytest.raises(DataError, match=r"the reference losses \(flat\) have no gradient at step 1: nothing would be"):
        step(model, Pipeline(torch.optim.SGD(model.named_parameters(), lr=0.1), gradient=rule), 1)
    assert same(before, trainable(model))


def test_a_loss_that_is_not_finite_stops_and_is_named() -> None:
    model = network()
    rule = Orthogonal({"bad": [torch.inf]}, loss=lambda model, batch: batch * model[0].weight.sum()).bind(model)
    with pytest.raises(RunFailed, match=r"the loss of reference set 'bad' is -?(inf|nan) at step 1"):
        step(model, Pipeline(torch.optim.SGD(model.named_parameters(), lr=0.1), gradient=rule), 1)


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    model = network()
    rule = Orthogonal({"bad": [1.0]}, loss=lambda model, batch: model[0].weight).bind(model)
    with pytest.raises(DataError, match="the loss of reference set 'bad' must be a scalar tensor with a gradient"):
        step(model, Pipeline(torch.optim.SGD(model.named_parameters(), lr=0.1), gradient=rule), 1)


def test_without_a_model_or_a_tokenizer_it_says_what_is_missing() -> None:
    model = network()
    rule = Orthogonal(SETS, loss=squared)
    with pytest.raises(ValueError, match=r"no model to take reference gradients of: call its bind\(model\) first"):
        step(model, Pipeline(torch.optim.SGD(model.named_parameters(), lr=0.1), gradient=rule), 1)
    with pytest.raises(DataError, match="need a tokenizer"):
        Orthogonal({"texts": ["a"]}).bind(model, Host())
    with pytest.raises(ValueError, match=r"parameter '0.weight' is none of the model given to bind"):
        step(model, Pipeline(torch.optim.SGD(model.named_parameters(), lr=0.1), gradient=rule.bind(nn.Linear(1, 1))), 1)


def test_a_tensor_with_no_more_entries_than_directions_rests_under_adam() -> None:
    """Two directions leave nothing of two entries; what rounding leaves must not become steps of Adam's."""
    model = network()
    model[3].bias.register_hook(lambda gradient: gradient * 1000)
    before = model[3].bias.detach().clone()
    rule = Orthogonal(SETS, loss=squared).bind(model)
    optimizer = Pipeline(torch.optim.AdamW(model.named_parameters(), lr=0.05, weight_decay=0.0), gradient=rule)
    for number in range(3):
        step(model, optimizer, number)
    assert torch.equal(model[3].bias, before)
