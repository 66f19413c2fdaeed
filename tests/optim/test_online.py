"""Online merging around any optimizer: the paper's algorithms as a slow twin, closed forms, the laws of its rows."""

from __future__ import annotations

import copy
import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "reference"))
import online_merging as paper

from untaxed.counter import mask_key
from untaxed.optim import MaskGradient, MergeUpdate, Merging, Pipeline, random_direction
from untaxed.optim._delta import as_delta
from untaxed.sparsify import kept_count, random_mask
from untaxed.weights import same

SHAPES = {"matrix": (5, 3), "vector": (7,), "scalar": ()}


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    """float64 numbers that float32 has too, as a delta must be."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def parameters(seed: int = 0, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(normal(shape, seed + index)) for index, (name, shape) in enumerate(shapes.items())}


def delta(seed: int = 100, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, Tensor]:
    return {name: normal(shape, seed + index) for index, (name, shape) in enumerate(shapes.items())}


def give_gradients(weights: dict[str, nn.Parameter], step: int) -> None:
    for index, p in enumerate(weights.values()):
        p.grad = normal(tuple(p.shape), 1000 * step + index + 1)


def online(weights: dict[str, nn.Parameter], merging: Merging, tau: dict[str, Tensor] | None, base=None) -> Pipeline:
    inner = (base or (lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1, foreach=False)))(weights.items())
    return Pipeline(inner, update=MergeUpdate(merging, tau))


def values(weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in weights.items()}


def twin_masks(name: str, merging: Merging):
    """The masks that our counters give, handed to the twin; by magnitude it sorts for itself."""

    def masks(step: int, numbers: list[float], use: str) -> list[float]:
        if merging.sparsify == "none":
            return [1.0] * len(numbers)
        if merging.sparsify == "magnitude":
            return paper.largest(numbers, kept_count(len(numbers), merging.density))
        at = 0 if use == "delta" and merging.delta_mask == "once" else step
        key = mask_key(merging.seed, name, at, use)
        return random_mask(len(numbers), merging.density, key=key).double().tolist()

    return masks


TWINS = {
    "ondare": Merging(0.4, 0.1, 1),
    "ondare, K = 5": Merging(0.4, 0.1, 5),
    "ondare, one mask": Merging(0.4, 0.1, 1, delta_mask="once"),
    "onties": Merging(0.4, 0.1, 1, sparsify="magnitude", consensus="sign"),
    "onties, K = 5": Merging(0.4, 0.1, 5, sparsify="magnitude", consensus="sign"),
    "dense": Merging(1.0, 0.3, 3, sparsify="none"),
}
OPTIMIZERS = {
    "adamw": (
        lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1, foreach=False),
        lambda n: paper.Adam(n, lr=0.05, decay=0.1),
    ),
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9), lambda n: paper.Descent(n, lr=0.02, momentum=0.9)),
}


@pytest.mark.parametrize("merging", TWINS.values(), ids=TWINS)
@pytest.mark.parametrize(("base", "slow"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_papers_algorithms_step_by_step(merging: Merging, base, slow) -> None:
    weights, tau = parameters(), delta()
    optimizer = online(weights, merging, tau, base)
    join = paper.by_sign if merging.consensus == "sign" else paper.plain_sum
    twins = {
        name: paper.OnlineMerging(
            p.detach().flatten().tolist(),
            tau[name].flatten().tolist(),
            alpha=merging.merge_weight,
            K=merging.merge_every,
            propose=slow(p.numel()),
            masks=twin_masks(name, merging),
            join=join,
        )
        for name, p in weights.items()
    }
    for step in range(1, 301):
        give_gradients(weights, step)
        for name, p in weights.items():
            twins[name].step(p.grad.flatten().tolist())
        optimizer.step()
        for name, p in weights.items():
            expected = torch.tensor(twins[name].theta, dtype=torch.float64).view(p.shape)
            torch.testing.assert_close(p.detach(), expected, rtol=1e-10, atol=1e-11, msg=f"{name} at step {step}")


def test_merging_at_the_last_step_only_is_one_merge_of_the_whole_displacement() -> None:
    """Section 8.3: K = T is theta_0 + (1 - w)(theta_Adam - theta_0) + w tau, the offline linear merge plus w tau."""
    T, w = 24, 0.1
    plain, merged, tau = parameters(), parameters(), delta()
    start = values(plain)
    base = torch.optim.AdamW(plain.items(), lr=0.05, foreach=False)
    optimizer = online(merged, Merging(1.0, w, T), tau, lambda p: torch.optim.AdamW(p, lr=0.05, foreach=False))
    for step in range(1, T + 1):
        for weights, each in ((plain, base), (merged, optimizer)):
            give_gradients(weights, step)
            each.step()
        if step < T:
            assert same(values(plain), values(merged))
    for name, adam in values(plain).items():
        ours, initial = values(merged)[name], start[name]
        torch.testing.assert_close(ours, initial + (1 - w) * (adam - initial) + w * tau[name], rtol=0, atol=2e-15)
        offline = (1 - w) * adam + w * initial
        torch.testing.assert_close(ours - offline, w * tau[name], rtol=0, atol=2e-15)


def test_between_merges_the_base_runs_plainly_and_flush_merges_the_tail() -> None:
    plain, merged, tau = parameters(), parameters(), delta()
    start = values(plain)
    base = torch.optim.SGD(plain.items(), lr=0.1)
    optimizer = online(merged, Merging(1.0, 0.25, 5), tau, lambda p: torch.optim.SGD(p, lr=0.1))
    for step in range(1, 4):
        for weights, each in ((plain, base), (merged, optimizer)):
            give_gradients(weights, step)
            each.step()
    assert same(values(plain), values(merged))
    optimizer.flush()
    flushed = values(merged)
    for name, adam in values(plain).items():
        expected = start[name] + 0.75 * (adam - start[name]) + 0.25 * tau[name]
        torch.testing.assert_close(flushed[name], expected, rtol=0, atol=2e-15)
    optimizer.flush()
    assert same(values(merged), flushed)
    optimizer.step()
    optimizer.step()  # the fifth merges the two steps since
    for name, p in merged.items():
        expected = flushed[name] + 0.75 * 2 * -0.1 * p.grad + 0.25 * tau[name]
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=4e-15)
    optimizer.flush()
    assert all("at_merge" not in own.get("update.0", {}) for own in optimizer._own.values())


N, T = 200_000, 100
VARIANTS = {  # section 8.1: settings, r, and whether the delta's mask is drawn once
    "the paper's": (Merging(0.1, 0.05), 1.0, False),
    "rescaled": (Merging(0.1, 0.05, rescale="inverse"), 10.0, False),
    "the released code's": (Merging(0.1, 0.05, rescale="inverse", delta_mask="once", clamp=4.0), 10.0, True),
}


@pytest.mark.parametrize(("merging", "r", "once"), VARIANTS.values(), ids=VARIANTS)
def test_mean_and_variance_of_the_displacement(merging: Merging, r: float, once: bool) -> None:
    """Constant update -lr and tau = 0.5 in every coordinate; 4 is the clamp of tau / p = 5."""
    p, w, lr, tau = merging.density, merging.merge_weight, 0.01, 0.5
    weight = nn.Parameter(torch.zeros(N))
    rule = MergeUpdate(merging, {"w": torch.full((N,), tau)})
    optimizer = Pipeline(torch.optim.SGD([("w", weight)], lr=lr), update=rule)
    for _ in range(T):
        weight.grad = torch.ones(N)
        optimizer.step()
    pull = min(r * tau, merging.clamp or float("inf"))
    mean = p * T * ((1 - w) * r * -lr + w * pull)
    variance = p * (1 - p) * (T * ((1 - w) * r * lr) ** 2 + (T**2 if once else T) * (w * pull) ** 2)
    moved = weight.detach().double()
    assert moved.mean().item() == pytest.approx(mean, abs=5 * (variance / N) ** 0.5)
    assert moved.var().item() == pytest.approx(variance, rel=0.05)


def test_an_anchor_pulls_back_and_the_papers_push_does_not() -> None:
    """Section 8.2, zero gradients: the anchored distance shrinks by (1 - w) a step, the push goes on for ever."""
    w, c = 0.1, 0.5
    weights, tau = parameters(), delta()
    start = values(weights)
    optimizer = online(weights, Merging(1.0, w, pull="anchor", anchor_at=c), tau, lambda p: torch.optim.SGD(p, lr=1.0))
    give_gradients(weights, 1)
    optimizer.step()
    after = values(weights)
    for _ in range(10):
        for p in weights.values():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    for name, p in weights.items():
        anchor = start[name] + c * tau[name]
        torch.testing.assert_close(p.detach() - anchor, (1 - w) ** 10 * (after[name] - anchor), rtol=1e-9, atol=1e-12)
    pushed = parameters()
    optimizer = online(pushed, Merging(1.0, w), tau, lambda p: torch.optim.SGD(p, lr=1.0))
    for _ in range(20):
        for p in pushed.values():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    for name, p in pushed.items():
        torch.testing.assert_close(p.detach(), start[name] + 20 * w * tau[name], rtol=1e-9, atol=1e-12)


def test_an_anchor_at_initial_needs_no_delta() -> None:
    weights = parameters()
    start = values(weights)
    optimizer = online(weights, Merging(1.0, 0.5, pull="anchor"), None, lambda p: torch.optim.SGD(p, lr=1.0))
    gradients = {}
    for step in range(1, 3):
        give_gradients(weights, step)
        gradients[step] = {name: p.grad.clone() for name, p in weights.items()}
        optimizer.step()
    for name, p in weights.items():  # 0.5 (-g1), then 0.5 (-g2) + 0.5 (0 - displacement)
        first = -0.5 * gradients[1][name]
        expected = start[name] + first - 0.5 * gradients[2][name] - 0.5 * first
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=2e-15)


def test_the_unrelaxed_equation_with_its_base() -> None:
    merging = Merging(0.4, 0.1, pull="unrelaxed")
    weights, tau = parameters(), delta()
    optimizer = online(weights, merging, tau, lambda p: torch.optim.SGD(p, lr=0.02))
    pretrained = {name: (p.detach() - tau[name]).flatten().tolist() for name, p in weights.items()}
    theta = {name: p.detach().flatten().tolist() for name, p in weights.items()}
    for step in range(1, 60):
        give_gradients(weights, step)
        for name, p in weights.items():
            D = (-0.02 * p.grad).flatten().tolist()
            masks = twin_masks(name, merging)
            kept = masks(step, D, "update"), masks(step, D, "delta")
            theta[name] = paper.unrelaxed(theta[name], D, pretrained[name], tau[name].flatten().tolist(), 0.1, *kept)
        optimizer.step()
        for name, p in weights.items():
            expected = torch.tensor(theta[name], dtype=torch.float64).view(p.shape)
            torch.testing.assert_close(p.detach(), expected, rtol=1e-9, atol=1e-10)


def test_momentum_keeps_exactly_its_largest_entries() -> None:
    shapes = {"matrix": (30, 20), "vector": (50,), "one": (1,)}
    plain, weights = parameters(shapes=shapes), parameters(shapes=shapes)
    optimizer = online(weights, Merging(0.1, sparsify="momentum"), None)
    for step in range(1, 30):
        before = values(weights)
        give_gradients(weights, step)
        optimizer.step()
        for name, p in weights.items():
            moment = optimizer.base.state[p]["exp_avg"]
            limit = moment.abs().flatten().topk(kept_count(p.numel(), 0.1)).values[-1]
            assert torch.equal(p.detach() != before[name], moment.abs() >= limit)
    assert plain.keys() == weights.keys()


def test_momentum_needs_an_optimizer_that_keeps_it() -> None:
    for base in (lambda p: torch.optim.SGD(p, lr=0.1), lambda p: torch.optim.Adafactor(p, lr=0.1)):
        weights = parameters()
        start = values(weights)
        optimizer = online(weights, Merging(0.1, sparsify="momentum"), None, base)
        give_gradients(weights, 1)
        with pytest.raises(ValueError, match="needs an optimizer that keeps its first moment"):
            optimizer.step()
        assert same(values(weights), start)


def test_childtuning_is_a_masked_and_rescaled_gradient_before_the_moments() -> None:
    ours, twin = parameters(), parameters()
    optimizer = Pipeline(torch.optim.AdamW(ours.items(), lr=0.05), gradient=MaskGradient(0.3, seed=5))
    base = torch.optim.AdamW(twin.items(), lr=0.05)
    for step in range(1, 50):
        give_gradients(ours, step)
        give_gradients(twin, step)
        for name, p in twin.items():
            key = mask_key(5, name, step, "gradient")
            mask = random_mask(p.numel(), 0.3, key=key).view(p.shape)
            p.grad = torch.where(mask, p.grad * (1 / 0.3), 0.0)
        optimizer.step()
        base.step()
        assert all(torch.equal(ours[name].grad, twin[name].grad) for name in ours)
    assert same(values(ours), values(twin))


def test_a_random_direction_has_the_norm_and_nothing_else() -> None:
    tau = {"w": torch.randn(40_000, generator=torch.Generator().manual_seed(0)) * 0.01}
    moved = {}
    for direction in ("delta", "random"):
        weight = nn.Parameter(torch.zeros(40_000))
        rule = MergeUpdate(Merging(1.0, 0.5), tau, direction=direction)
        optimizer = Pipeline(torch.optim.SGD([("w", weight)], lr=1.0), update=rule)
        weight.grad = torch.zeros(40_000)
        optimizer.step()
        moved[direction] = weight.detach()
    assert moved["random"].norm().item() == pytest.approx(moved["delta"].norm().item(), rel=1e-5)
    cosine = torch.nn.functional.cosine_similarity(moved["random"], moved["delta"], dim=0)
    assert abs(cosine) < 5 / 40_000**0.5
    assert torch.equal(moved["random"], 0.5 * random_direction(as_delta(tau), 0).dense("w"))
    with pytest.raises(ValueError, match="direction must be one of delta, random, got 'up'"):
        MergeUpdate(Merging(), None, direction="up")


def test_a_delta_that_does_not_fit_is_refused_before_anything_moves() -> None:
    weights = parameters()
    start = values(weights)
    give_gradients(weights, 1)
    wrong = {
        "none": (None, "no delta is given"),
        "names": ({"matrx": torch.ones(5, 3), "vector": torch.ones(7), "scalar": torch.ones(())}, "matrx"),
        "shape": ({**delta(), "matrix": torch.ones(3, 5)}, "matrix"),
        "not finite": ({**delta(), "vector": torch.full((7,), torch.nan)}, "vector"),
    }
    for tau, message in wrong.values():
        with pytest.raises(ValueError, match=message):
            online(weights, Merging(0.5, 0.1), tau).step()
    assert same(values(weights), start)


ROWS = {
    "online": Merging(1.0, 0.3, sparsify="none"),
    "ondare": Merging(1.0, 0.3),
    "onties": Merging(1.0, 0.3, sparsify="magnitude", consensus="sign"),
    "onties, unweighted": Merging(1.0, 0.3, sparsify="magnitude", consensus="sign_unweighted"),
    "mofo": Merging(1.0, sparsify="momentum"),
    "update_dropout": Merging(1.0, rescale="l1"),
    "anchor": Merging(1.0, 0.3, pull="anchor", anchor_at=1.0),
    "unrelaxed": Merging(1.0, 0.3, pull="unrelaxed"),
    "pushed rarely": Merging(1.0, 0.3, push_every=3),
}


@pytest.mark.parametrize("merge_every", [1, 2, 5])
@pytest.mark.parametrize("merging", ROWS.values(), ids=ROWS)
def test_at_density_1_every_parameter_moves_at_every_step(merging: Merging, merge_every: int) -> None:

    weights = parameters()
    optimizer = online(weights, dataclasses.replace(merging, merge_every=merge_every), delta())
    for step in range(1, 12):
        before = values(weights)
        give_gradients(weights, step)
        optimizer.step()
        for name, p in weights.items():
            assert not torch.equal(p.detach(), before[name]), (name, step)


@given(
    shape=st.sampled_from([(), (1,), (0,), (7,), (3, 5), (4, 0, 2), (70, 33)]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    merging=st.builds(
        Merging,
        density=st.sampled_from([1e-3, 0.1, 0.5, 1.0]),
        merge_weight=st.sampled_from([0.0, 1e-5, 0.5, 1.0]),
        merge_every=st.integers(1, 4),
        sparsify=st.sampled_from(["random", "magnitude", "momentum", "none"]),
        consensus=st.sampled_from(["sum", "sign", "sign_unweighted"]),
        rescale=st.sampled_from(["none", "inverse", "l1"]),
        delta_mask=st.sampled_from(["fresh", "once"]),
        clamp=st.sampled_from([None, 0.5]),
        pull=st.sampled_from(["constant", "anchor", "unrelaxed"]),
        anchor_at=st.sampled_from([0.0, 1.0]),
        push_every=st.integers(1, 3),
    ),
)
@settings(max_examples=150, deadline=None)
def test_every_choice_of_settings_steps_and_resumes(shape, dtype, merging: Merging) -> None:
    shapes = {"a": shape, "b": (2,)}
    tau = delta(shapes=shapes)

    def made() -> tuple[dict[str, nn.Parameter], Pipeline]:
        weights = {name: nn.Parameter(p.detach().to(dtype)) for name, p in parameters(shapes=shapes).items()}
        return weights, online(weights, merging, tau, lambda p: torch.optim.AdamW(p, lr=0.05))

    def run(weights: dict[str, nn.Parameter], optimizer: Pipeline, first: int, last: int) -> None:
        for step in range(first, last):
            for index, p in enumerate(weights.values()):
                p.grad = normal(tuple(p.shape), 1000 * step + index).to(dtype)
            optimizer.step()

    weights, optimizer = made()
    run(weights, optimizer, 1, 4)
    others, resumed = made()
    for name, p in others.items():
        p.data.copy_(weights[name].data)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(weights, optimizer, 4, 8)
    run(others, resumed, 4, 8)
    assert same(values(weights), values(others))
    assert all(p.isfinite().all() and p.dtype == dtype for p in weights.values())


@pytest.mark.parametrize("how", ["random", "magnitude", "momentum"])
def test_no_rescaling_where_everything_is_kept(how: str) -> None:
    """ "none" keeps all entries whatever the density, so nothing is to be made up for."""
    weights = parameters()
    optimizer = online(weights, Merging(0.1, sparsify="none", rescale="inverse"), None)
    plain = parameters()
    base = torch.optim.AdamW(plain.items(), lr=0.05, weight_decay=0.1, foreach=False)
    for each, owner in ((optimizer, weights), (base, plain)):
        give_gradients(owner, 1)
        each.step()
    assert same(values(weights), values(plain))
    with pytest.raises(ValueError, match=r"merge_every must be a whole number, at least 1, got 2\.5"):
        Merging(merge_every=2.5, sparsify=how)
