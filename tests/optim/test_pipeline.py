"""`Pipeline` around any optimizer: nothing of the base's is lost, nothing of ours leaks into it."""

from __future__ import annotations

import copy
import io
import logging

import pytest
import torch
from stand_ins import EightBit, ScheduleFree
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from untaxed.errors import RunFailed, Unsupported
from untaxed.optim import MaskGradient, MergeUpdate, Merging, Pipeline
from untaxed.weights import same

BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "8 bit": EightBit,
    "schedule-free": ScheduleFree,
}
if hasattr(torch.optim, "Muon"):
    BASES["muon"] = lambda p: torch.optim.Muon(p, lr=0.01)
DELTA_SEED = 77


def halved(update, old, entry, state):
    return update / 2


def counted(values, *rest):
    rest[-1]["calls"] = rest[-1].get("calls", 0) + 1
    return values.clone()


def model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False)).to(dtype)


def delta_of(module):
    generator = torch.Generator().manual_seed(DELTA_SEED)
    return {name: torch.randn(p.shape, generator=generator) for name, p in module.named_parameters()}


def give_gradients(module, step):
    generator = torch.Generator().manual_seed(step)
    for p in module.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def full(base, module, **options):
    """Every site, K = 3, a delta, stochastic rounding."""
    rule = MergeUpdate(Merging(0.5, 0.01, 3, pull="anchor", anchor_at=0.5), delta_of(module))
    return Pipeline(
        BASES[base](module.named_parameters()),
        gradient=MaskGradient(0.7),
        update=[rule, counted],
        displacement=counted,
        rounding="stochastic",
        **options,
    )


def set_mode(optimizer, mode):
    if hasattr(optimizer, mode):
        getattr(optimizer, mode)()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_with_the_effect_off_every_base_is_itself_to_the_bit(base: str, dtype: torch.dtype) -> None:
    alone, wrapped = model(dtype), model(dtype)
    plain = BASES[base](alone.named_parameters())
    optimizer = Pipeline(
        BASES[base](wrapped.named_parameters()),
        gradient=MaskGradient(1.0),
        update=[MergeUpdate(Merging(merge_every=3)), counted],
        displacement=counted,
        rounding="stochastic",
    )
    for each in (plain, optimizer):
        set_mode(each, "train")
    for step in range(7):
        for module, each in ((alone, plain), (wrapped, optimizer)):
            give_gradients(module, step)
            each.step()
        assert same(weights(alone), weights(wrapped)), step
    for each in (plain, optimizer):
        set_mode(each, "eval")
    assert same(weights(alone), weights(wrapped))
    assert all("update.1" not in state for state in optimizer.base.state.values())


@pytest.mark.parametrize("base", BASES)
def test_the_update_is_the_difference_that_the_base_made(base: str) -> None:
    alone, wrapped = model(torch.float64), model(torch.float64)
    plain = BASES[base](alone.named_parameters())
    optimizer = Pipeline(BASES[base](wrapped.named_parameters()), update=halved)
    start = weights(alone)
    for module, each in ((alone, plain), (wrapped, optimizer)):
        set_mode(each, "train")
        give_gradients(module, 0)
        each.step()
    for name, moved in weights(wrapped).items():
        torch.testing.assert_close(moved - start[name], (weights(alone)[name] - start[name]) / 2, rtol=1e-9, atol=1e-15)


def through_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("way", ["torch.save", "checkpoint"])
def test_save_load_continue_is_bit_identical_at_every_step(base: str, way: str) -> None:
    straight = model()
    optimizer = full(base, straight)
    set_mode(optimizer, "train")
    for saved_at in range(1, 8):
        give_gradients(straight, saved_at)
        optimizer.step()
        optimizer.zero_grad()
        resumed, ahead = copy.deepcopy(straight), copy.deepcopy(straight)
        other, same_run = full(base, resumed), full(base, ahead)
        same_run.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        set_mode(other, "train")
        if way == "torch.save":
            other.load_state_dict(through_file(optimizer.state_dict()))
        else:
            saved = copy.deepcopy(get_optimizer_state_dict(straight, optimizer))
            set_optimizer_state_dict(resumed, other, saved)
        for step in range(10, 15):
            for module, each in ((ahead, same_run), (resumed, other)):
                give_gradients(module, step)
                each.step()
            assert same(weights(ahead), weights(resumed)), (saved_at, step)
        assert other.state_dict()["skipped"] == 0


def test_an_uninterrupted_run_equals_a_resumed_one_of_plain_descent_through_the_checkpoint_api() -> None:
    """Plain SGD has no state, for which the API takes an optimizer as unused and steps it; ours is not unused."""
    straight, watched = model(), model()
    first, second = full("sgd", straight), full("sgd", watched)
    for step in range(9):
        for module, each in ((straight, first), (watched, second)):
            give_gradients(module, step)
            each.step()
            each.zero_grad()
        get_optimizer_state_dict(watched, second)
        assert same(weights(straight), weights(watched)), step


def test_a_copy_goes_on_as_the_original_does() -> None:
    module = model()
    optimizer = full("adamw", module)
    give_gradients(module, 0)
    optimizer.step()
    other, twin = copy.deepcopy((module, optimizer))
    twin.register_step_post_hook(lambda *_: None)
    for step in range(5):
        for each, owner in ((optimizer, module), (twin, other)):
            give_gradients(owner, step)
            each.step()
    assert same(weights(module), weights(other))


def test_schedulers_hooks_and_groups_are_the_bases() -> None:
    module = model()
    base = torch.optim.SGD(
        [
            {"params": [("0.weight", module[0].weight)], "density": 0.25},
            {"params": [("2.weight", module[2].weight)], "lr": 0.5},
        ],
        lr=0.1,
    )
    optimizer = Pipeline(base, update=MergeUpdate(Merging(density=0.5)))
    assert optimizer.param_groups is base.param_groups
    assert [group["density"] for group in optimizer.param_groups] == [0.25, 0.5]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    stepped = []
    optimizer.register_step_post_hook(lambda optimizer, args, kwargs: stepped.append("post"))
    optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: stepped.append("pre"))
    give_gradients(module, 0)
    optimizer.step()
    scheduler.step()
    assert stepped == ["pre", "post"]
    assert [group["lr"] for group in base.param_groups] == [0.05, 0.25]
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups is base.param_groups
    optimizer.register_state_dict_post_hook(lambda optimizer, state: {**state, "more": 1})
    assert optimizer.state_dict()["more"] == 1
    optimizer.register_load_state_dict_pre_hook(
        lambda optimizer, state: {k: v for k, v in state.items() if k != "more"}
    )
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.zero_grad()
    assert module[0].weight.grad is None


def test_settings_can_be_scheduled_and_two_functions_may_share_a_name() -> None:
    module = model()
    rules = [MergeUpdate(Merging(density=1.0)), MergeUpdate(Merging(density=1.0, seed=1))]
    optimizer = Pipeline(torch.optim.SGD(module.named_parameters(), lr=0.1), gradient=MaskGradient(1.0), update=rules)
    [group] = optimizer.param_groups
    assert (group["density"], group["update.1.density"], group["gradient_density"]) == (1.0, 1.0, 1.0)
    group["update.1.density"] = 0.5
    start = weights(module)
    give_gradients(module, 0)
    optimizer.step()
    moved = torch.cat([(weights(module)[name] != start[name]).flatten() for name in start])
    assert 0.2 < moved.float().mean() < 0.8
    group["density"] = 1.5
    give_gradients(module, 1)
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\], got 1.5"):
        optimizer.step()


def test_exchanged_parameters_are_followed_by_name() -> None:
    """What FSDP2 does in `accelerator.prepare`: other objects in the same groups."""
    module, other = model(), model()
    optimizer = full("adamw", module)
    optimizer.param_groups[0]["params"] = list(other.parameters())
    twin = model()
    expected = full("adamw", twin)
    for step in range(4):
        for owner, each in ((other, optimizer), (twin, expected)):
            give_gradients(owner, step)
            each.step()
    assert same(weights(other), weights(twin))
    assert same(weights(module), weights(model()))


def test_the_closure_is_evaluated_once_with_gradients_on() -> None:
    module = model()
    optimizer = Pipeline(torch.optim.SGD(module.named_parameters(), lr=0.1), update=halved)
    calls = []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = module(torch.ones(2, 4)).square().mean()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first
    assert len(calls) == 2
    with pytest.raises(Unsupported, match="LBFGS"):
        Pipeline(torch.optim.LBFGS(module.parameters()), names=["a", "b"])


def test_names_are_needed_and_must_differ() -> None:
    module = model()
    with pytest.raises(ValueError, match=r"have no names: build the optimizer from model.named_parameters\(\)"):
        Pipeline(torch.optim.SGD(module.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="2 parameters, got 1 names"):
        Pipeline(torch.optim.SGD(module.parameters(), lr=0.1), names=["a"])
    with pytest.raises(ValueError, match="share the name 'a'"):
        Pipeline(torch.optim.SGD(module.parameters(), lr=0.1), names=["a", "a"])
    named = Pipeline(torch.optim.SGD(module.parameters(), lr=0.1), names=["a", "b"])
    assert named.param_groups[0]["param_names"] == ["a", "b"]
    with pytest.raises(ValueError, match="share the name 'a'"):
        named.add_param_group({"params": [("a", nn.Parameter(torch.zeros(1)))]})
    assert len(named.param_groups) == 1
    with pytest.raises(ValueError, match="rounding must be one of nearest, stochastic, got 'up'"):
        Pipeline(torch.optim.SGD(module.named_parameters(), lr=0.1), rounding="up")
    with pytest.raises(ValueError, match="base must be a torch optimizer"):
        Pipeline(module)


def test_parameters_added_later_start_at_their_own_first_step() -> None:
    module, seen = model(), []

    def watch(displacement, entry, state):
        seen.append((entry.place.name, entry.step))
        return displacement / 2

    optimizer = Pipeline(torch.optim.SGD([("0.weight", module[0].weight)], lr=0.1), displacement=watch)
    give_gradients(module, 0)
    optimizer.step()
    optimizer.add_param_group({"params": [("2.weight", module[2].weight)]})
    start = module[2].weight.detach().clone()
    optimizer.step()
    assert seen == [("0.weight", 1), ("0.weight", 2), ("2.weight", 1)]
    torch.testing.assert_close(module[2].weight.detach(), start - 0.05 * module[2].weight.grad)


def test_displacement_is_measured_from_the_first_step_on() -> None:
    module = model()
    optimizer = Pipeline(
        torch.optim.SGD(module.named_parameters(), lr=1.0),
        displacement=lambda displacement, entry, state: displacement.clamp(-0.5, 0.5),
    )
    start = weights(module)
    for step in range(20):
        give_gradients(module, step)
        optimizer.step()
    for name, moved in weights(module).items():
        assert (moved - start[name]).abs().max() <= 0.5 + 1e-6
    assert any((moved - start[name]).abs().max() > 0.49 for name, moved in weights(module).items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_gradients_that_are_not_finite_change_nothing(bad: float, caplog: pytest.LogCaptureFixture) -> None:
    for choice in ("raise", "skip"):
        module = model()
        optimizer = full("adamw", module, nonfinite=choice)
        give_gradients(module, 0)
        optimizer.step()
        before, state = weights(module), copy.deepcopy(optimizer.state_dict())
        for _ in range(2):
            give_gradients(module, 1)
            module[2].weight.grad[1, 2] = bad
            gradients = [p.grad.clone() for p in module.parameters()]
            if choice == "raise":
                with pytest.raises(RunFailed, match=r"'2\.weight' is not finite; nothing was changed"):
                    optimizer.step()
            else:
                with caplog.at_level(logging.WARNING):
                    optimizer.step()
            for p, gradient in zip(module.parameters(), gradients):
                torch.testing.assert_close(p.grad, gradient, rtol=0, atol=0, equal_nan=True)
        assert same(before, weights(module))
        after = optimizer.state_dict()
        assert after.pop("skipped") == (2 if choice == "skip" else 0)
        assert str(after) == str({key: value for key, value in state.items() if key != "skipped"})
    assert caplog.text.count("the step is skipped") == 1


def test_sparse_gradients_and_wrong_shapes_are_refused() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = Pipeline(torch.optim.SGD(embedding.named_parameters(), lr=0.1), update=halved)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="gradient of 'weight' is sparse"):
        optimizer.step()
    module = model()
    optimizer = Pipeline(torch.optim.SGD(module.named_parameters(), lr=0.1), update=lambda u, *_: u.sum())
    give_gradients(module, 0)
    with pytest.raises(ValueError, match=r"update.0 returned shape \(\) for '0.weight', expected \(6, 4\)"):
        optimizer.step()


@pytest.mark.parametrize("merge_every", [1, 2])
def test_at_learning_rate_zero_nothing_is_merged_or_pushed(merge_every: int) -> None:
    module = model()
    rule = MergeUpdate(Merging(1.0, 0.5, merge_every), delta_of(module))
    optimizer = Pipeline(torch.optim.AdamW(module.named_parameters(), lr=0.1), update=rule, displacement=counted)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    start = weights(module)
    give_gradients(module, 0)
    optimizer.step()
    assert same(start, weights(module))
    warm_up.step()
    optimizer.step()
    assert not any(torch.equal(start[name], moved) for name, moved in weights(module).items())


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (5,), (3, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sparsify", ["random", "magnitude", "none"])
def test_every_form_of_tensor(shape: tuple[int, ...], dtype: torch.dtype, sparsify: str) -> None:
    parameters = {
        "a": nn.Parameter(torch.ones(shape, dtype=dtype)),
        "frozen": nn.Parameter(torch.ones(shape, dtype=dtype), requires_grad=False),
        "unused": nn.Parameter(torch.ones(shape, dtype=dtype)),
        "other": nn.Parameter(torch.ones(2, dtype=dtype)),
    }
    parameters["other"].grad = torch.ones(2, dtype=dtype)
    delta = {name: torch.full(p.shape, 0.5) for name, p in parameters.items()} | {"more": torch.ones(3)}
    rule = MergeUpdate(Merging(1.0, 0.5, sparsify=sparsify), delta)
    optimizer = Pipeline(torch.optim.SGD(parameters.items(), lr=0.5), update=rule, rounding="stochastic")
    parameters["a"].grad = torch.ones(shape, dtype=dtype)
    optimizer.step()
    assert torch.equal(parameters["a"].detach(), torch.full(shape, 1.0, dtype=dtype))  # 1 - 0.5 · 0.5 + 0.5 · 0.5
    assert torch.equal(parameters["unused"].detach(), torch.ones(shape, dtype=dtype))
    assert list(optimizer.state_dict()["state"]) == [0, 3]


def test_tied_and_non_contiguous_parameters() -> None:
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 5, bias=False)
            self.second = nn.Linear(3, 5, bias=False)
            self.first.weight = nn.Parameter(torch.randn(3, 5).t())
            self.second.weight = self.first.weight

    module = Tied()
    start = module.first.weight.detach().clone()
    rule = MergeUpdate(Merging(0.5))
    optimizer = Pipeline(torch.optim.SGD(module.named_parameters(), lr=1.0), update=rule)
    module.first.weight.grad = torch.ones(5, 3)
    optimizer.step()
    contiguous = nn.Parameter(start.contiguous())
    other = Pipeline(torch.optim.SGD([("first.weight", contiguous)], lr=1.0), update=MergeUpdate(Merging(0.5)))
    contiguous.grad = torch.ones(5, 3)
    other.step()
    assert module.second.weight is module.first.weight
    assert torch.equal(module.first.weight.detach(), contiguous.detach())
    assert 0 < (contiguous.detach() != start).sum() < 15


def test_foreign_saved_states_are_refused() -> None:
    module = model()
    optimizer = full("adamw", module)
    give_gradients(module, 0)
    optimizer.step()
    with pytest.raises(ValueError, match=r"not a Pipeline's; load a base's own with pipeline\.base\.load_state_dict"):
        optimizer.load_state_dict(optimizer.base.state_dict())
    other = Pipeline(torch.optim.AdamW(model().named_parameters()))
    with pytest.raises(ValueError, match=r"the saved state has the function 'displacement\.0'"):
        other.load_state_dict(optimizer.state_dict())
    renamed = Pipeline(torch.optim.AdamW(model().parameters()), names=["a", "b"])
    with pytest.raises(ValueError, match=r"has '0\.weight' where this optimizer has 'a'"):
        renamed.load_state_dict(optimizer.state_dict())


def test_wrappers_names_make_no_difference() -> None:
    module, wrapped = model(), model()
    delta = delta_of(module)
    for owner, prefix in ((module, ""), (wrapped, "module._orig_mod.")):
        names = [prefix + name for name, _ in owner.named_parameters()]
        rule = MergeUpdate(Merging(0.5, 0.1), delta)
        optimizer = Pipeline(torch.optim.SGD(owner.parameters(), lr=0.1), update=rule, names=names)
        give_gradients(owner, 0)
        optimizer.step()
    assert same(weights(module), weights(wrapped))


def moved_bf16(rounding: str, weight: float, density: float) -> float:
    """How far bf16 weights of 0.02 move in the mean in 50 steps of a push along tau = 0.01 · weight, no gradient."""
    n = 1 << 16
    parameter = nn.Parameter(torch.full((n,), 0.02, dtype=torch.bfloat16))
    start = parameter.detach().double()
    rule = MergeUpdate(Merging(density, weight, rescale="inverse"), {"w": torch.full((n,), 0.01)})
    optimizer = Pipeline(torch.optim.SGD([("w", parameter)], lr=1e-6), update=rule, rounding=rounding)
    for _ in range(50):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    return ((parameter.detach().double() - start).mean()).item()


@pytest.mark.parametrize("density", [1.0, 0.01])
def test_pushes_far_below_an_ulp_move_bf16_weights_in_the_mean_with_stochastic_rounding_only(density: float) -> None:
    """w · tau = 1e-7 · 0.01 = 1e-9 a step, the weight's ulp is 2^-13 = 1.2e-4: 50 · 65,536 draws of probability 8e-6
    raise about 27 weights by an ulp each, 19 % of noise."""
    expected = 50 * 1e-7 * 0.01
    assert moved_bf16("nearest", 1e-7, density) == 0
    assert abs(moved_bf16("stochastic", 1e-7, density) / expected - 1) < 0.75
    if density == 1:
        assert moved_bf16("stochastic", 1e-4, density) == pytest.approx(50 * 1e-4 * 0.01, rel=0.03)
