"""Numbers of a recipe that differ from tensor to tensor."""

from __future__ import annotations

import doctest
import importlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from untaxed.merging._settings import Setting, gradient

finite = st.floats(-1e6, 1e6)


def test_gradient_goes_through_its_values_in_straight_lines() -> None:
    # three values lie at t = 0, 1/2 and 1; t = 2/3 is a third of the way from the second to the third: 1 + (4 - 1) / 3
    assert [gradient((0, 1, 4), t) for t in (0, 0.25, 0.5, 2 / 3, 1)] == pytest.approx([0, 0.5, 1, 2, 4])


@given(st.lists(finite, min_size=1, max_size=6), st.floats(0, 1))
def test_gradient_stays_between_its_values_and_meets_its_ends(values: list[float], t: float) -> None:
    assert gradient(tuple(values), 0) == values[0]
    assert gradient(tuple(values), 1) == values[-1]
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= float(gradient(tuple(values), t)) <= max(values) + slack


def test_first_filter_that_holds_wins_and_none_may_hold() -> None:
    setting = Setting.read(
        [{"filter": "attn", "value": 1}, {"filter": "q_proj", "value": 2}, {"filter": "mlp", "value": [0, 1]}]
    )
    found = [setting.at(name, 0.5) for name in ("a.attn.q_proj", "a.q_proj", "a.mlp.up", "norm")]
    assert found == [1, 2, 0.5, None]


@pytest.mark.parametrize("raw", [{"value": 3}, [{"value": 3}], [{"filter": "*", "value": 3}], [3], 3, "3", "3e0"])
def test_one_value_may_be_written_in_many_ways(raw: object) -> None:
    assert Setting.read(raw).at("any.weight", 0.3) == 3


def test_truth_values_stay_truth_values() -> None:
    assert Setting.read(True).at("any", 0) is True
    assert Setting.read([{"filter": "mlp", "value": False}, {"value": True}]).at("mlp.up", 0) is False


@pytest.mark.parametrize("module", ["_settings", "_layers"])
def test_every_example_runs(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"untaxed.merging.{module}"))
    assert (failed, tried > 0) == (0, True)
