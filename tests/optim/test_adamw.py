"""OnDAREAdamW and OnTIESAdamW: torch's AdamW with the effect off, compiled equal to eager, resumable anywhere."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from untaxed.errors import RunFailed, Unsupported
from untaxed.optim import MergeUpdate, Merging, OnDAREAdamW, OnTIESAdamW, Pipeline, _kernel, sft_delta
from untaxed.sparsify import kept_count

SHAPES = {"a": (130, 97), "b": (17,), "c": (), "d": (1,), "e": (0, 3), "f": (9001,)}
CLASSES = (OnDAREAdamW, OnTIESAdamW)
COMPILED = _kernel.load() is not None


@contextmanager
def eager() -> Iterator[None]:
    """Without the compiled kernel."""
    load, _kernel.load = _kernel.load, lambda: None  # type: ignore[assignment]
    try:
        yield
    finally:
        _kernel.load = load


def tensors(seed: int, scale: float, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(shape, generator=generator) * scale).to(dtype) for name, shape in SHAPES.items()}


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(tensor) for name, tensor in tensors(0, 0.02, dtype).items()}


def build(cls: type, own: dict[str, nn.Parameter], **settings: Any) -> Any:
    settings = {"lr": 1e-3, "merge_weight": 0.3, "weight_decay": 0.1, "delta": tensors(1, 1e-3)} | settings
    return cls(list(own.items()), **settings)


def take_steps(optimizer: Any, own: dict[str, nn.Parameter], steps: range) -> None:
    for step in steps:
        for name, gradient in tensors(100 + step, 1e-2).items():
            own[name].grad = gradient.to(own[name].dtype)
        optimizer.step()


def run(cls: type, steps: int = 4, dtype: torch.dtype = torch.float32, **settings: Any) -> dict[str, nn.Parameter]:
    own = parameters(dtype)
    take_steps(build(cls, own, **settings), own, range(steps))
    return own


def equal(first: dict[str, nn.Parameter], second: dict[str, nn.Parameter]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


SETTINGS = [
    dict(zip(("density", "rescale", "delta_mask", "consensus", "adam", "clamp"), values))
    for values in itertools.product(
        (0.003, 0.05, 0.4, 1.0),
        ("none", "inverse"),
        ("fresh", "once"),
        ("sum", "sign", "sign_unweighted"),
        ("torch", "algorithm_box"),
        (None, 0.002),
    )
]


@pytest.mark.skipif(not COMPILED, reason="no C compiler")
@pytest.mark.parametrize("cls", CLASSES)
def test_compiled_and_eager_give_the_same_bits(cls: type) -> None:
    for number, settings in enumerate(SETTINGS):
        if number % 7 == 0:  # of all combinations a spread
            compiled = run(cls, **settings)
            with eager():
                assert equal(compiled, run(cls, **settings)), settings


@pytest.mark.skipif(not COMPILED, reason="no C compiler")
@pytest.mark.parametrize("settings", [{}, {"sparsify": "momentum"}, {"merge_weight": 0.0}, {"density": 0.3}])
def test_compiled_and_eager_agree_where_the_threshold_is_guessed(settings: dict[str, Any]) -> None:
    """A tensor large enough for a sample, rounded so that magnitudes are tied in numbers; steps alike, from which the
    next is guessed, and steps that make fools of the guesses."""
    found = []
    for how in (contextmanager(lambda: iter([None])), eager):
        generator = torch.Generator().manual_seed(0)
        weight = nn.Parameter(torch.randn(700, 450, generator=generator))
        delta = {"w": torch.randn(700, 450, generator=generator)}
        optimizer = OnTIESAdamW([("w", weight)], lr=1e-3, **({"delta": delta, "merge_weight": 0.1} | settings))
        with how():
            for scale, lr in ((1, 1e-3),) * 6 + ((300, 1e-3), (0, 1e-3), (1, 1e-5), (1, 0.0), (1, 1e-3), (1, 1e-3)):
                weight.grad = torch.randn(700, 450, generator=generator).round(decimals=1).mul_(scale)
                optimizer.param_groups[0]["lr"] = lr
                optimizer.step()
        found.append(weight)
    assert torch.equal(*found)


@pytest.mark.parametrize(("threads", "openmp"), [(1, True), (2, True), (2, False)])
def test_neither_the_number_of_threads_nor_whose_they_are_changes_anything(
    threads: int, openmp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    if not openmp and COMPILED:
        monkeypatch.setattr(_kernel.load(), "_parallel", None)
    expected = run(OnDAREAdamW), run(OnTIESAdamW)
    try:
        torch.set_num_threads(threads)
        assert equal(expected[0], run(OnDAREAdamW))
        assert equal(expected[1], run(OnTIESAdamW))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("every", [1, 3])
def test_with_the_effect_off_it_is_torchs_adamw(cls: type, dtype: torch.dtype, every: int) -> None:
    """To the bit; in windows of several steps, whose arithmetic is ours, to an ulp a step."""
    ours = run(cls, 5, dtype, density=1.0, merge_weight=0.0, merge_every=every, delta=None)
    theirs = parameters(dtype)
    optimizer = torch.optim.AdamW(theirs.values(), lr=1e-3, weight_decay=0.1, fused=dtype == torch.float32 or None)
    take_steps(optimizer, theirs, range(5))
    if every == 1:
        assert equal(ours, theirs)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=5 * torch.finfo(dtype).eps, atol=1e-8 if every > 1 else 0)


@pytest.mark.parametrize("settings", [{}, {"merge_every": 3}, {"rescale": "inverse"}, {"delta_mask": "once"}])
@pytest.mark.parametrize("cls", CLASSES)
def test_it_is_the_fast_path_of_the_pipeline(cls: type, settings: dict[str, Any]) -> None:
    """In float64, where a difference of weights is the update to 16 digits."""
    ours = run(cls, 8, torch.float64, **settings)
    theirs = parameters(torch.float64)
    merging = Merging(**{**cls.DEFAULTS, "merge_weight": 0.3, **settings})  # type: ignore[attr-defined]
    base = torch.optim.AdamW(list(theirs.items()), lr=1e-3, weight_decay=0.1)
    optimizer = Pipeline(base, update=MergeUpdate(merging, tensors(1, 1e-3)))
    take_steps(optimizer, theirs, range(8))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=1e-14)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("every", [1, 4])
def test_at_density_one_every_parameter_moves_at_every_step(cls: type, every: int) -> None:
    own = parameters()
    optimizer = build(cls, own, density=1.0, merge_every=every)
    for step in range(8):
        before = {name: tensor.detach().clone() for name, tensor in own.items()}
        take_steps(optimizer, own, range(step, step + 1))
        assert all(not torch.equal(before[name], own[name]) for name in own if own[name].numel())


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    "settings", [{}, {"merge_every": 3}, {"pull": "anchor", "anchor_at": 1.0}, {"delta_mask": "once"}]
)
@pytest.mark.parametrize("cut", [1, 3, 4])
def test_resume_is_bit_identical_at_every_point_of_a_cycle(cls: type, settings: dict[str, Any], cut: int) -> None:
    straight = run(cls, 6, **settings)
    own = parameters()
    first = build(cls, own, **settings)
    take_steps(first, own, range(cut))
    file = io.BytesIO()
    torch.save({"optimizer": first.state_dict(), "weights": {name: p.detach() for name, p in own.items()}}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = {name: nn.Parameter(tensor) for name, tensor in saved["weights"].items()}
    second = build(cls, again, **{**settings, "lr": 5.0, "density": 0.9})  # what was saved goes before
    second.load_state_dict(saved["optimizer"])
    take_steps(second, again, range(cut, 6))
    assert equal(straight, again)


def test_narrow_weights_keep_wide_state_through_a_resume() -> None:
    own = parameters(torch.bfloat16)
    optimizer = build(OnDAREAdamW, own, master="float32")
    take_steps(optimizer, own, range(2))
    assert optimizer.state[own["a"]]["exp_avg"].dtype == torch.float32
    again = {name: nn.Parameter(p.detach().clone()) for name, p in own.items()}
    other = build(OnDAREAdamW, again, master="float32")
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.state[again["a"]]["master"].dtype == torch.float32
    take_steps(optimizer, own, range(2, 4))
    take_steps(other, again, range(2, 4))
    assert equal(own, again)


@pytest.mark.parametrize(
    ("dtype", "settings", "arrives"),
    [
        (torch.float32, {"rounding": "stochastic"}, True),
        (torch.bfloat16, {"rounding": "stochastic"}, True),
        (torch.bfloat16, {"master": "float32", "rounding": "stochastic"}, True),
        (torch.bfloat16, {"master": "float32", "push_every": 1000}, True),
        (torch.bfloat16, {}, False),
    ],
)
def test_a_small_push_arrives_in_every_mode_that_says_so(dtype: torch.dtype, settings: dict, arrives: bool) -> None:
    """merge_weight 1e-7 on a delta of 1e-2: 1e-9 a step, where half an ulp of bf16 at 0.02 is 6e-5, of fp32 9.3e-10."""
    n, steps = 1 << 16, 2000 if "push_every" in settings else 8
    weight = nn.Parameter(torch.full((n,), 0.02, dtype=dtype))
    start = weight.detach().double().mean()
    delta, unit = {"w": torch.full((n,), 1e-2)}, 1e-9
    if dtype == torch.bfloat16 and settings.get("rounding") == "stochastic" and "master" not in settings:
        delta, unit = {"w": torch.full((n,), 10.0)}, 1e-6  # enough entries move for a mean to be seen
    settings = {"density": 1.0, "merge_weight": 1e-7, "delta": delta, **settings}
    optimizer = OnDAREAdamW([("w", weight)], lr=1e-12, **settings)
    weight.grad = torch.zeros(n, dtype=dtype)
    if not arrives:
        with pytest.warns(UserWarning, match="below half a unit"):
            optimizer.step()
    for _ in range(steps):
        optimizer.step()
    held = optimizer.state[weight].get("master", weight)
    moved = float(held.detach().double().mean() - start)
    if arrives:
        assert moved == pytest.approx(steps * unit, rel=0.25)
    else:
        assert moved == 0


def test_at_a_learning_rate_of_zero_nothing_moves_and_the_moments_do() -> None:
    for cls, every in itertools.product(CLASSES, (1, 2)):
        own = parameters()
        before = {name: p.detach().clone() for name, p in own.items()}
        optimizer = build(cls, own, lr=0.0, merge_every=every)
        take_steps(optimizer, own, range(4))
        assert all(torch.equal(before[name], own[name]) for name in own)
        assert optimizer.state[own["a"]]["exp_avg"].any()


def test_what_a_gradient_that_is_not_finite_does() -> None:
    for cls, bad in itertools.product(CLASSES, (float("nan"), float("inf"))):
        own = parameters()
        optimizer = build(cls, own)
        take_steps(optimizer, own, range(1))
        own["a"].grad[3, 5] = bad
        with pytest.raises(RunFailed, match=r"gradient of 'a' is not finite at its step 2; .*nonfinite='skip'"):
            optimizer.step()
        assert all(torch.isfinite(p).all() for p in own.values())
        careful = build(cls, own, nonfinite="skip")
        before = {name: p.detach().clone() for name, p in own.items()}
        careful.step()
        assert careful.skipped == 1
        assert all(torch.equal(before[name], own[name]) for name in own)
        assert not any(careful.state.values())
        take_steps(careful, own, range(1))
        assert careful.skipped == 1
        assert not torch.equal(before["a"], own["a"])


def test_parameters_that_are_frozen_or_have_no_gradient_are_left_alone() -> None:
    own = parameters()
    own["b"].requires_grad_(False)
    delta = tensors(1, 1e-3)
    del delta["b"]  # of a frozen parameter none is needed
    optimizer = build(OnDAREAdamW, own, delta=delta, density=1.0)
    before = {name: p.detach().clone() for name, p in own.items()}
    own["a"].grad = torch.ones_like(own["a"])
    optimizer.step()
    assert {name for name in own if not torch.equal(before[name], own[name])} == {"a"}


def test_groups_have_settings_of_their_own_and_may_be_added_later() -> None:
    own = parameters()
    optimizer = OnDAREAdamW(
        [{"params": [("a", own["a"])], "density": 1.0}, {"params": [("f", own["f"])], "lr": 0.0}],
        lr=1e-3,
        merge_weight=0.0,
    )
    optimizer.add_param_group({"params": [("b", own["b"])], "density": 1.0})
    before = {name: p.detach().clone() for name, p in own.items()}
    take_steps(optimizer, own, range(1))
    assert (own["a"] != before["a"]).all()
    assert (own["b"] != before["b"]).all()
    assert torch.equal(own["f"], before["f"])
    optimizer.param_groups[0]["density"] = 0.25  # as a schedule does
    middle = own["a"].detach().clone()
    take_steps(optimizer, own, range(1, 2))
    assert (own["a"] != middle).float().mean() == pytest.approx(0.25, abs=0.03)


def test_magnitude_keeps_the_promised_number() -> None:
    own = parameters()
    before = {name: p.detach().clone() for name, p in own.items()}
    take_steps(build(OnTIESAdamW, own, density=0.05, merge_weight=0.0, weight_decay=0.0), own, range(1))
    for name, tensor in own.items():
        if tensor.numel():
            assert int((tensor != before[name]).sum()) == kept_count(tensor.numel(), 0.05)


def test_closure_is_called_with_gradients_on_and_its_loss_returned() -> None:
    layer = nn.Linear(3, 1)
    optimizer = OnDAREAdamW(layer.named_parameters(), lr=0.1, density=1.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = layer(torch.ones(3)).pow(2).sum()
        loss.backward()
        return loss

    before = float(layer(torch.ones(3)).detach()) ** 2
    assert float(optimizer.step(closure).detach()) == pytest.approx(before)


def test_flush_merges_the_tail() -> None:
    """5 steps of K=2 and a flush equal 2 merges of two steps and one of the last."""
    own = parameters()
    optimizer = build(OnDAREAdamW, own, merge_every=2, density=1.0, merge_weight=0.25)
    take_steps(optimizer, own, range(4))
    middle = {name: p.detach().clone() for name, p in own.items()}
    take_steps(optimizer, own, range(4, 5))
    plain = {name: p.detach().clone() for name, p in own.items()}
    optimizer.flush()
    delta = tensors(1, 1e-3)
    for name, tensor in own.items():
        expected = middle[name] + 0.75 * (plain[name] - middle[name]) + 0.25 * delta[name]
        torch.testing.assert_close(tensor.detach(), expected, rtol=1e-5, atol=1e-8)
    again = own["a"].detach().clone()
    optimizer.flush()
    assert torch.equal(again, own["a"])


def test_flush_merges_also_where_a_schedule_has_ended_at_zero() -> None:
    own = parameters()
    optimizer = build(OnDAREAdamW, own, merge_every=4, density=1.0, merge_weight=1.0)
    take_steps(optimizer, own, range(2))
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.flush()
    expected, delta = parameters(), tensors(1, 1e-3)
    for name, tensor in own.items():  # at weight 1 only the delta is left
        torch.testing.assert_close(tensor.detach(), expected[name].detach() + delta[name], rtol=1e-6, atol=1e-8)


def test_the_call_shape_of_frameworks_that_pass_bare_parameters() -> None:
    """verl: ``cls(module.parameters(), lr=…, weight_decay=…, betas=…, **override)``, names in the override."""
    model = nn.Linear(4, 2)
    override = {"names": [name for name, _ in model.named_parameters()], "density": 0.5, "merge_weight": 0.1}
    delta = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    optimizer = OnDAREAdamW(model.parameters(), lr=1e-3, weight_decay=0.0, betas=(0.9, 0.99), delta=delta, **override)
    model(torch.ones(4)).sum().backward()
    optimizer.step()
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]


def test_a_delta_from_a_file_of_checkpoints_is_the_delta(tmp_path: Any) -> None:
    first, second = tensors(1, 1.0), tensors(2, 1.0)
    given = sft_delta(first, second)
    direct = {name: first[name] - second[name] for name in first}
    assert equal(run(OnDAREAdamW, delta=given), run(OnDAREAdamW, delta=direct))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"density": 0.0}, r"density must be in \(0, 1\], got 0.0"),
        ({"density": 1.5}, r"density must be in \(0, 1\], got 1.5"),
        ({"merge_weight": -0.1}, r"merge_weight must be in \[0, 1\], got -0.1"),
        ({"merge_every": 0}, "merge_every must be"),
        ({"consensus": "vote"}, "consensus must be one of sum, sign, sign_unweighted, got 'vote'"),
        ({"lr": -1.0}, "lr must be at least 0"),
        ({"betas": (1.0, 0.9)}, "betas must be in"),
        ({"adam": "nadam"}, "adam must be one of torch, algorithm_box"),
        ({"rounding": "up"}, "rounding must be nearest or stochastic"),
        ({"master": "float64"}, "master must be"),
        ({"nonfinite": "ignore"}, "nonfinite must be raise or skip"),
        ({"delta": None}, r"no delta is given; pass delta=sft_delta\(initial, pretrained\)"),
        ({"delta": {"a": torch.ones(130, 97)}}, "'f'"),
    ],
)
def test_what_is_wrong_is_said(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(OnDAREAdamW, parameters(), **settings)


def test_unknown_settings_missing_names_and_sparse_gradients_are_refused() -> None:
    own = parameters()
    with pytest.raises(TypeError, match="has no setting 'densty'"):
        build(OnDAREAdamW, own, densty=0.5)
    with pytest.raises(ValueError, match="needs the parameters' names"):
        OnDAREAdamW(own.values())
    with pytest.raises(ValueError, match="one name a parameter: got 1 names and 6 parameters"):
        OnDAREAdamW(own.values(), names=["a"])
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"gradient of 'weight' is sparse"):
        OnDAREAdamW(embedding.named_parameters()).step()


def test_a_state_saved_with_another_delta_is_refused() -> None:
    own = parameters()
    optimizer = build(OnDAREAdamW, own)
    take_steps(optimizer, own, range(1))
    other = build(OnDAREAdamW, parameters(), delta=tensors(7, 1e-3))
    with pytest.raises(ValueError, match="belongs to the delta"):
        other.load_state_dict(optimizer.state_dict())


def test_without_a_compiler_it_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernel, "which", lambda name: None)
    _kernel.load.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no C compiler found"):
            run(OnDAREAdamW, 2)
        run(OnDAREAdamW, 2)  # a second warning would be an error
    finally:
        _kernel.load.cache_clear()


# --- what a review found ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not COMPILED, reason="no C compiler")
def test_ties_of_the_delta_are_chosen_alike_with_and_without_the_compiler() -> None:
    """A delta between two bfloat16 checkpoints has few values."""
    found = []
    for how in (contextmanager(lambda: iter([None])), eager):
        generator = torch.Generator().manual_seed(0)
        weight = nn.Parameter(torch.randn(64, 64, generator=generator))
        delta = {"w": torch.randn(64, 64, generator=generator).mul_(4).round()}
        optimizer = OnTIESAdamW([("w", weight)], lr=1e-4, delta=delta, merge_weight=0.1)
        with how():
            for _ in range(5):
                weight.grad = torch.randn(64, 64, generator=generator)
                optimizer.step()
        found.append(weight)
    assert torch.equal(*found)


@pytest.mark.parametrize("cls", CLASSES)
def test_copies_go_on_as_their_original(cls: type) -> None:
    own = parameters()
    optimizer = build(cls, own, merge_every=3)
    take_steps(optimizer, own, range(2))
    theirs, copied = copy.deepcopy((own, optimizer))
    take_steps(optimizer, own, range(2, 5))
    take_steps(copied, theirs, range(2, 5))
    assert equal(own, theirs)
    pickled = pickle.loads(pickle.dumps(cls([("w", nn.Parameter(torch.ones(3)))], lr=0.1)))
    pickled.param_groups[0]["params"][0].grad = torch.ones(3)
    pickled.step()


def test_a_window_that_was_open_when_it_was_changed_is_closed_then() -> None:
    """And its origin forgotten, or a later window would begin there."""
    weight = nn.Parameter(torch.zeros(50))
    general = nn.Parameter(torch.zeros(50))
    fast = OnDAREAdamW([("w", weight)], lr=1e-2, density=0.5, merge_every=5)
    rule = MergeUpdate(Merging(density=0.5, merge_every=5))
    slow = Pipeline(torch.optim.AdamW([("w", general)], lr=1e-2, weight_decay=0.0), update=rule)
    for optimizer, own, key in ((fast, weight, "merge_every"), (slow, general, None)):
        key = key or next(name for name in slow.param_groups[0] if name.endswith("merge_every"))
        for step in range(130):
            optimizer.param_groups[0][key] = 1 if 7 <= step < 107 else 5
            before = own.detach().clone()
            own.grad = torch.ones(50)
            optimizer.step()
            assert (own.detach() - before).abs().max() <= 0.051, step  # a window of five steps at the most


def test_gradients_whose_squares_overflow_move_nothing() -> None:
    for how in (contextmanager(lambda: iter([None])), eager):
        weight = nn.Parameter(torch.ones(4))
        optimizer = OnTIESAdamW([("w", weight)], lr=1e-3, density=0.75)
        with how():
            for _ in range(2):
                weight.grad = torch.tensor([1e21, 1e21, 1e21, 3.0])
                optimizer.step()
        assert weight[:3].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("cls", CLASSES)
def test_at_a_learning_rate_of_0_nothing_becomes_nan(cls: type) -> None:
    weight = nn.Parameter(torch.ones(10))
    optimizer = cls([("w", weight)], lr=0.0, eps=0.0, density=0.5)
    weight.grad = torch.zeros(10)
    optimizer.step()
    assert torch.equal(weight, torch.ones(10))


def test_a_delta_that_is_needed_late_is_asked_for_before_the_step() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = OnDAREAdamW([("w", weight)], lr=0.1, density=0.5)
    weight.grad = torch.ones(3)
    optimizer.step()
    optimizer.param_groups[0]["merge_weight"] = 1e-3
    before = copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(ValueError, match="no delta is given; pass delta=sft_delta"):
        optimizer.step()
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], before[0]["exp_avg"])


def test_names_must_tell_parameters_apart_and_fit_a_saved_state() -> None:
    pair = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    for names in (["a", "a"], ["module.a", "a"]):
        with pytest.raises(ValueError, match="parameters share the name 'a'"):
            OnDAREAdamW(list(zip(names, pair)))
    saved = OnDAREAdamW([("x", pair[0])]).state_dict()
    with pytest.raises(ValueError, match="the saved state has 'x' where this optimizer has 'y'"):
        OnDAREAdamW([("y", pair[1])]).load_state_dict(saved)


def test_a_weight_of_zero_loses_no_push() -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = OnDAREAdamW(
        [("b", weight)], lr=1e-6, density=1.0, merge_weight=1e-6, delta={"b": torch.full((3,), 1e-3)}
    )
    weight.grad = torch.zeros(3)
    optimizer.step()  # a warning would be an error
    assert weight.tolist() == pytest.approx([1e-9] * 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": None}, "density must be a finite number, got None"),
        ({"density": True}, "density must be a finite number, got True"),
        ({"clamp": "x"}, "clamp must be a finite number, got 'x'"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"lr": "1e-3"}, "lr must be a finite number"),
        ({"lr": float("inf")}, "lr must be a finite number, got inf"),
    ],
)
def test_settings_of_a_wrong_type_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OnDAREAdamW([("w", nn.Parameter(torch.ones(2)))], **settings)


def test_complex_parameters_are_refused() -> None:
    with pytest.raises(Unsupported, match="'w' is complex64: only real"):
        OnTIESAdamW([("w", nn.Parameter(torch.ones(2, dtype=torch.complex64)))])
