"""Laws that hold for every rule, from one table."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from table_of_rules import DTYPES, RULES, SHAPES, inputs, tensors
from torch import Tensor

from untaxed.counter import BLOCK
from untaxed.merging import (
    AverageRule,
    DareRule,
    LinearRule,
    Rule,
    SlerpRule,
    TaskArithmeticRule,
    TiesRule,
    WarpRule,
    _rule,
    merged,
)

NAMES = sorted(RULES)
WEIGHTED = sorted(set(NAMES) - {"model stock"})
DEALT = {"dare", "dare, l1", "dare ties"}  # a model's mask goes by its place
IN_TURN = {"slerp of three", "warp"}  # one arc after the other

OWNERS = {  # the place of the largest share, None for the base's; the first one's where a name is missing
    "linear": 2, "task arithmetic": 2, "task arithmetic, normalized": 2, "slerp": 1, "slerp of three": 2, "ties": 2,
    "dare": 2, "dare ties": 2, "task negation": None, "warp": None, "dare, l1": None,
}  # fmt: skip
ENDS = [
    (AverageRule(0), 0), (AverageRule(1), None), (LinearRule((0, 1)), 1), (LinearRule((2, 0)), 0),
    (SlerpRule((0, 1)), 1),
    (SlerpRule((1, 0)), 0), (WarpRule((1,), 0), 0), (WarpRule((1, 1), 1), None), (TaskArithmeticRule((0, 0)), None),
    (TaskArithmeticRule((1,), scale=0), None), (TaskArithmeticRule((0, 1)), 1), (TiesRule((0, 0), (1, 1)), None),
    (TiesRule((1, 1), (1, 1), scale=0), None), (TiesRule((0, 1), (1, 1)), 1), (DareRule((0, 0), (0.5, 0.5)), None),
    (DareRule((0, 1), (1, 1)), 1),
]  # fmt: skip


def bits(tensor: Tensor) -> Tensor:
    """As integers, so that the signs of zeros count."""
    return tensor.contiguous().view({8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.element_size()])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merging_a_model_with_itself_is_that_model_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    rule, count = RULES[name]
    [model] = tensors(1, (9, 7), dtype=dtype)
    model.view(-1)[:4] = torch.tensor([0.0, -0.0, 1e-7, -1.0]).to(dtype)
    made = merged(rule, [model] * count, model if rule.needs_base else None, name="w")
    assert torch.equal(bits(made), bits(model))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape(name: str, shape: tuple[int, ...]) -> None:
    rule, models, base = inputs(name, shape)
    made = merged(rule, models, base, name="w")
    assert made.shape == shape
    assert made.isfinite().all()


@given(name=st.sampled_from(NAMES), shape=st.lists(st.integers(0, 5), max_size=3), seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_any_shape_is_the_flat_tensor_in_that_shape(name: str, shape: list[int], seed: int) -> None:
    rule, models, base = inputs(name, shape, seed)
    flat = merged(rule, [m.flatten() for m in models], None if base is None else base.flatten(), name="w")
    assert torch.equal(merged(rule, models, base, name="w").flatten(), flat)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inputs_are_not_written_and_dtypes_kept(name: str, dtype: torch.dtype) -> None:
    rule, models, base = inputs(name, (6, 4), dtype=dtype)
    given = [*models, *([] if base is None else [base])]
    copies = [tensor.clone() for tensor in given]
    made = merged(rule, models, base)
    assert made.dtype == dtype
    made.zero_()
    assert all(map(torch.equal, given, copies))


@pytest.mark.parametrize("name", NAMES)
def test_strides_gradients_and_dtypes_of_the_inputs_do_not_matter(name: str) -> None:
    rule, models, base = inputs(name, (6, 4))
    plain = merged(rule, models, base)
    models[0] = models[0].t().contiguous().t().requires_grad_()
    made = merged(rule, models, base)
    assert torch.equal(made, plain)
    assert made.is_contiguous()
    assert not made.requires_grad
    half = merged(rule, [models[0].bfloat16(), *models[1:]], base)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_computed_in_float64(name: str) -> None:
    rule, models, base = inputs(name, (50,))
    wide = merged(rule, [m.double() for m in models], None if base is None else base.double(), name="w")
    narrow = merged(rule, models, base, name="w")
    assert torch.allclose(wide.float(), narrow, atol=1e-5)
    if name not in {"linear of one", "ties of one"}:  # whose entries are the parents', float32 numbers here
        assert not torch.equal(wide, wide.float().double())


@pytest.mark.parametrize("name", NAMES)
def test_integers_and_their_like_are_copied_from_the_largest_share(name: str) -> None:
    rule, count = RULES[name]
    owner = OWNERS.get(name, 0)
    for kind in (torch.int64, torch.bool, torch.complex64):
        own, other = torch.tensor([3, 1]).to(kind), torch.tensor([0, 0]).to(kind)
        models = [own if place == owner else other for place in range(count)]
        base = own if owner is None else other
        made = merged(rule, models, base if rule.needs_base else None)
        assert torch.equal(made, own)
        assert made.data_ptr() != own.data_ptr()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int32, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize(("rule", "end"), ENDS, ids=str)
def test_at_the_end_of_a_share_stands_that_parent_to_the_bit(rule: Rule, end: int | None, dtype: torch.dtype) -> None:
    base, *models = ((4 * tensor).to(dtype) for tensor in tensors(3, (5, 3)))
    models = models if len(getattr(rule, "weights", (1,))) == 2 else models[:1]
    made = merged(rule, models, base, name="w")
    assert torch.equal(made, base if end is None else models[end])


def streamed(rule: Rule, models: Sequence[Tensor], base: Tensor | None, size: int, threads: int) -> Tensor:
    """As an engine does it: blocks of another size, in no order, by several threads."""
    total = models[0].numel()
    offsets = list(range(0, total, size))[::-1]
    survey = rule.survey(total, name="w")

    def blocks(offset: int) -> tuple[list[Tensor], Tensor | None]:
        cut = slice(offset, offset + size)
        return [m[cut].clone() for m in models], None if base is None else base[cut].clone()

    with ThreadPoolExecutor(threads) as pool:
        while survey is not None:
            list(pool.map(lambda offset: survey.take(*blocks(offset), offset), offsets))
            if not survey.again():
                break
        made = list(
            pool.map(
                lambda offset: rule.combine(*blocks(offset), survey=survey, name="w", offset=offset).clone(), offsets
            )
        )
    return torch.cat(made[::-1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "ties"])
def test_neither_the_blocks_size_nor_their_order_nor_the_threads_matter(
    name: str, coarse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, models, base = inputs(name, (5 * BLOCK + 77,))
    if coarse:
        models = [(4 * m).round() / 4 for m in models]
        base = None if base is None else (4 * base).round() / 4
    whole = merged(rule, models, base, name="w")
    for size, threads in ((BLOCK, 1), (2 * BLOCK, 3), (8 * BLOCK, 1)):
        assert torch.equal(streamed(rule, models, base, size, threads), whole)
    monkeypatch.setattr(_rule, "BLOCK", BLOCK)
    assert torch.equal(merged(rule, models, base, name="w"), whole)


@pytest.mark.parametrize("name", sorted(set(NAMES) - DEALT - IN_TURN))
def test_the_order_of_the_models_does_not_matter(name: str) -> None:
    """But for rounding; what goes by place or in turn says so in its docstring."""
    rule, models, base = inputs(name, (100,))
    made = merged(rule, models, base, name="w")
    for order in permutations(range(len(models))):
        fields = {
            field: tuple(getattr(rule, field)[k] for k in order)
            for field in ("weights", "densities")
            if hasattr(rule, field)
        }
        other = type(rule)(**{**vars(rule), **fields})
        assert torch.allclose(merged(other, [models[k] for k in order], base, name="w"), made, atol=1e-6)


def test_the_order_of_the_models_does_not_choose_among_equal_magnitudes() -> None:
    rule, models, base = inputs("ties", (200,))
    models = [base + (4 * model).round() / 4 for model in models]  # a few magnitudes, each many times
    made = merged(rule, models, base, name="w")
    turned = TiesRule(rule.weights[::-1], rule.densities[::-1])
    assert torch.allclose(merged(turned, models[::-1], base, name="w"), made, atol=1e-6)


@pytest.mark.parametrize("name", sorted(name for name, (rule, _) in RULES.items() if not rule.needs_base))
def test_a_base_that_is_not_needed_changes_nothing(name: str) -> None:
    rule, models, _ = inputs(name, (100,))
    assert torch.equal(merged(rule, models, torch.ones(100)), merged(rule, models))


@pytest.mark.parametrize("name", WEIGHTED)
def test_the_base_is_asked_for_where_it_is_needed_and_one_number_a_model(name: str) -> None:
    rule, models, base = inputs(name, (3,))
    if rule.needs_base:
        with pytest.raises(ValueError, match=rf"{type(rule).__name__} needs the base model's tensor, got none"):
            merged(rule, models)
    counted = rf"weights must be one a model, got {len(models)} for {len(models) + 1}|one aligned model, got 2"
    with pytest.raises(ValueError, match=counted):
        merged(rule, [*models, models[0]], base)
    with pytest.raises(ValueError, match="at least 1 model, got none"):
        merged(rule, [], base)


def test_model_stock_is_for_two_models_or_more() -> None:
    rule, models, base = inputs("model stock", (3,))
    with pytest.raises(ValueError, match="ModelStockRule needs at least 2 models, got 1"):
        merged(rule, models[:1], base)
    with pytest.raises(ValueError, match="this rule is for 3 models, got 2"):
        merged(rule, models[:2], base)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must have one shape, got \(2,\), \(3,\)"):
        merged(RULES["extrapolating"][0], [torch.zeros(2), torch.zeros(3)])


def test_two_seeded_merges_agree_and_touch_no_generator() -> None:
    before = torch.random.get_rng_state()
    for name in NAMES:
        rule, models, base = inputs(name, (64,))
        assert torch.equal(merged(rule, models, base, name="w"), merged(rule, models, base, name="w"))
    assert torch.equal(torch.random.get_rng_state(), before)
