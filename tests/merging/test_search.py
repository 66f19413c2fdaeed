from __future__ import annotations

import itertools
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from untaxed.errors import DataError, StoreError, UsageError
from untaxed.merging import Front, LeastTax, MostReward, Partition, partition, search_ratios
from untaxed.merging._goals import front
from untaxed.merging._proposers import Space

GOALS = [MostReward(tax_at_most=0.1), LeastTax(reward_at_least=0.7), Front()]
ALGORITHMS: list[Any] = ["model", "cmaes", "random"]


def cut(blocks: int = 3, **arguments: Any) -> Partition:
    return partition({f"h.{n}.w.weight": (2, 2) for n in range(blocks)}, blocks, **arguments)


def world(ratios: Mapping[str, float]) -> dict[str, float]:
    """The first block holds the reward, the last the ability; the one between both."""
    r = np.resize([*ratios.values()], max(2, len(ratios)))
    return {"reward": float(1 - r[0] - 0.2 * r[1] ** 2), "tax": float(0.5 * (1 - r[-1]) ** 2 + 0.1 * (1 - r[1]))}


@pytest.mark.parametrize("share", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: type(goal).__name__)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_candidate_is_allowed(algorithm: Any, goal: Any, share: float | None) -> None:
    shapes = {f"h.{n}.w.weight": (n + 1, 2) for n in range(4)}
    weightings: list[tuple[int, Any]] = [(1, "blocks"), (2, "layers"), (3, "parameters")]
    for blocks, weighting in weightings:
        made = partition(shapes, blocks, weighting=weighting)
        found = search_ratios(world, made, goal, initial_share=share, evaluations=25, algorithm=algorithm)
        assert len(found.evaluations) <= 25
        for evaluation in found.evaluations:
            values = [*evaluation.ratios.values()]
            assert all(0 <= ratio <= 1 for ratio in values)
            assert share is None or abs(made.mean(evaluation.ratios) - share) < 1e-6
        assert set(found.evaluations[0].ratios.values()) == {share or 0.0}


@pytest.mark.parametrize("algorithm", ["model", "cmaes"])
def test_the_known_optimum_is_found(algorithm: Any) -> None:
    made = cut()
    most = search_ratios(world, made, MostReward(tax_at_most=0.1), evaluations=80, algorithm=algorithm)
    # r0 = 0; tax 0.5 (1 - c)^2 + 0.1 (1 - b) <= 0.1 has room with c = 1: b may be 0, reward 1
    assert most.best is not None
    assert most.best.values["reward"] > (0.99 if algorithm == "model" else 0.9)
    least = search_ratios(world, made, LeastTax(0.7), initial_share=0.4, evaluations=80, algorithm=algorithm)
    # mean 0.4: a = 0 leaves b + c = 1.2; the slopes 0.1 and 1 - c are equal at c = 0.9
    assert least.ratios == pytest.approx({"layer 0": 0, "layer 1": 0.3, "layer 2": 0.9}, abs=0.06)
    assert least.best is not None
    assert least.best.values["reward"] >= 0.7
    assert least.averaging is None  # 0.4 everywhere: reward 0.568


@pytest.mark.parametrize("algorithm", ["model", "cmaes"])
def test_a_search_finds_what_ten_times_as_many_random_ratios_do(algorithm: Any) -> None:
    goal = Front(reward_from=0.0, reward_to=1.0, tax_to=1.0)

    def area(**arguments: Any) -> float:
        found = search_ratios(world, cut(), goal, **arguments)
        return goal.area(np.array([[e.values["reward"], e.values["tax"]] for e in found.front]))

    assert area(algorithm=algorithm, evaluations=60) >= 0.99 * area(algorithm="random", evaluations=600, seed=1)


def test_a_front_holds_what_nothing_dominates_and_no_more() -> None:
    found = search_ratios(world, cut(), Front(), evaluations=40)
    values = [(e.values["reward"], e.values["tax"]) for e in found.evaluations]
    kept = [(e.values["reward"], e.values["tax"]) for e in found.front]
    for reward, tax in values:
        dominated = any(r >= reward and t <= tax and (r, t) != (reward, tax) for r, t in values)
        assert ((reward, tax) in kept) != dominated
    assert found.best in found.front
    assert found.averaging is not None


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
@settings(max_examples=150, deadline=None)
def test_areas_are_those_counted_cell_by_cell(rows: list[tuple[float, float]]) -> None:
    values = np.array(rows)
    goal = Front(reward_from=0.1, reward_to=0.9, tax_to=0.8)
    edges = sorted({0.1, 0.9, *(r for r, _ in rows if 0.1 < r < 0.9)})
    slow = 0.0
    for low, high in itertools.pairwise(edges):
        slow += (high - low) * max([0.8 - t for r, t in rows if r >= high and t < 0.8], default=0.0)
    assert goal.area(values) == pytest.approx(slow, abs=1e-12)
    last = values[-1:]
    assert goal.gains(last, values[:-1])[0] == pytest.approx(goal.area(values) - goal.area(values[:-1]), abs=1e-12)


def test_of_equal_points_the_first_is_on_the_front() -> None:
    assert front(np.array([[1.0, 0.2], [1.0, 0.2], [1.0, 0.3], [math.nan, 0.0], [0.2, 0.1]])) == [0, 4]
    assert front(np.empty((0, 2))) == []


def test_the_limit_as_a_share_of_what_was_won() -> None:
    assert LeastTax.keeping(0.95, initial=2.0, aligned=4.0) == LeastTax(3.9)
    with pytest.raises(ValueError, match="aligned must be a finite number"):
        LeastTax.keeping(0.95, initial=2.0, aligned=math.nan)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: type(goal).__name__)
def test_a_longer_search_begins_with_the_shorter(goal: Any, algorithm: Any, tmp_path: Path) -> None:
    log = tmp_path / "search.jsonl"
    short = search_ratios(world, cut(), goal, evaluations=22, algorithm=algorithm, log=log)
    longer = search_ratios(world, cut(), goal, evaluations=34, algorithm=algorithm, log=log)
    whole = search_ratios(world, cut(), goal, evaluations=34, algorithm=algorithm)
    assert (short.measured, longer.measured, whole.measured) == (22, 12, 34)
    assert [e.ratios for e in longer.evaluations] == [e.ratios for e in whole.evaluations]
    assert longer.evaluations[:22] == short.evaluations
    again = search_ratios(world, cut(), goal, evaluations=34, algorithm=algorithm, log=log)
    assert (again.measured, again.record()) == (0, {**longer.record(), "measured": 0})
    json.dumps(again.record(), allow_nan=False)


def test_seeds_differ_and_one_seed_does_not() -> None:
    first, second, other = (search_ratios(world, cut(), Front(), evaluations=20, seed=seed) for seed in (0, 0, 1))
    assert [e.ratios for e in first.evaluations] == [e.ratios for e in second.evaluations]
    assert [e.ratios for e in first.evaluations] != [e.ratios for e in other.evaluations]


def test_every_candidate_meets_the_same_random_numbers() -> None:
    def drawn(ratios: Mapping[str, float]) -> dict[str, Any]:
        draws = [torch.rand(1).item(), float(np.random.random()), random.random()]
        return {"reward": draws[0], "tax": draws[1], "draws": draws}

    state = (torch.get_rng_state(), random.getstate())
    found = search_ratios(drawn, cut(), Front(), evaluations=8)
    assert len({tuple(e.values["draws"]) for e in found.evaluations}) == 1
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == random.getstate()
    other = search_ratios(drawn, cut(), Front(), evaluations=1, common_seed=1)
    assert other.evaluations[0].values["draws"] != found.evaluations[0].values["draws"]


WORKER = """
import os, sys, time
from untaxed.merging import Front, partition, search_ratios
def slow(ratios):
    time.sleep(0.05)
    r = [*ratios.values()]
    return {"reward": 1 - r[0], "tax": (1 - r[1]) ** 2 + 0.1 * r[2]}
cut = partition({f"h.{n}.w.weight": (2, 2) for n in range(3)}, 3)
found = search_ratios(slow, cut, Front(), evaluations=30, log=sys.argv[1])
print(found.measured)
print([[*e.ratios.values()] for e in found.evaluations])
"""


def test_a_killed_search_goes_on_and_loses_nothing(tmp_path: Path) -> None:
    log = tmp_path / "search.jsonl"

    def start(path: Path) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", WORKER, str(path)], stdout=subprocess.PIPE, text=True)

    whole = start(tmp_path / "whole.jsonl").communicate(timeout=120)[0].splitlines()
    killed = start(log)
    while not log.exists() or log.read_bytes().count(b"\n") < 8:
        assert killed.poll() is None
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    kept = log.read_bytes().count(b"\n") - 1
    with open(log, "ab") as file:
        file.write(b'{"ratios": {"layer 0": 0.1')  # as if the kill had come within a line
    resumed = start(log).communicate(timeout=120)[0].splitlines()
    assert int(resumed[0]) == 30 - kept
    assert resumed[1] == whole[1]
    assert all(json.loads(line) for line in log.read_text().splitlines())


def test_what_the_evaluator_adds_is_kept_and_what_is_undefined_is_null(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "search.jsonl"

    def evaluate(ratios: Mapping[str, float]) -> dict[str, Any]:
        lost = sum(ratios.values()) > 1.5
        return {"reward": np.float32(0.5), "tax": None if lost else 0.25, "drift": {"kl": math.nan}, "n": torch.ones(2)}

    for algorithm in ALGORITHMS:
        for goal in GOALS:
            found = search_ratios(evaluate, cut(), goal, evaluations=15, algorithm=algorithm, log=log)
            assert any(e.values["tax"] is None for e in found.evaluations)
            assert all(e.values["tax"] is not None for e in found.front)
    row = json.loads(log.read_text().splitlines()[1])
    assert row["values"] == {"reward": 0.5, "tax": 0.25, "drift": {"kl": None}, "n": [1.0, 1.0]}


def test_a_limit_that_nothing_keeps_to_says_so() -> None:
    found = search_ratios(world, cut(), LeastTax(reward_at_least=2.0), evaluations=12)
    assert (found.best, found.ratios) == (None, None)
    assert found.why == "none of 12 evaluations keeps to reward_at_least = 2.0"


def test_a_log_of_another_search_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "search.jsonl"
    search_ratios(world, cut(), Front(), evaluations=2, log=log, about={"models": "a"})
    for arguments, names in (
        ({"about": {"models": "b"}}, "about"),
        ({"about": {"models": "a"}, "common_seed": 3}, "common_seed"),
    ):
        with pytest.raises(StoreError, match=rf"is of another search \(it differs in {names}\); give another file"):
            search_ratios(world, cut(), Front(), evaluations=2, log=log, **arguments)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="differs in blocks"):
        search_ratios(world, cut(4), Front(), evaluations=2, log=log, about={"models": "a"})


def test_a_damaged_log_is_one_line(tmp_path: Path) -> None:
    log = tmp_path / "search.jsonl"
    search_ratios(world, cut(), Front(), evaluations=3, log=log)
    lines = log.read_text().splitlines()
    for line, message in (
        ("{", "line 3, is damaged"),
        ('{"a": 1}', "line 3, is no evaluation"),
        ("5", "no evaluation"),
    ):
        log.write_text("\n".join([*lines[:2], line, *lines[3:]]) + "\n")
        with pytest.raises(StoreError, match=message):
            search_ratios(world, cut(), Front(), evaluations=3, log=log)


def test_a_log_in_use_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "search.jsonl"

    def within(ratios: Mapping[str, float]) -> dict[str, float]:
        with pytest.raises(StoreError, match="in use by another search"):
            search_ratios(world, cut(), Front(), evaluations=1, log=log)
        return world(ratios)

    search_ratios(within, cut(), Front(), evaluations=1, log=log)
    with pytest.raises(StoreError, match="cannot be opened"):
        search_ratios(world, cut(), Front(), evaluations=1, log=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"evaluations": 0}, "evaluations must be at least 1, got 0"),
        ({"algorithm": "cma"}, "unknown algorithm 'cma'; did you mean 'cmaes'"),
        ({"initial_share": 1.5}, r"initial_share must be in \[0, 1\], got 1.5"),
        ({"goal": "front"}, "the goal must be MostReward"),
    ],
)
def test_what_cannot_be_searched_is_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search_ratios(world, cut(), **{"goal": Front(), **arguments})
    assert issubclass(UsageError, ValueError)


@pytest.mark.parametrize("values", [{"reward": 1.0}, {"reward": "1", "tax": 0.0}, {"reward": True, "tax": 0.0}, 0.5])
def test_an_evaluator_that_returns_no_numbers_is_named(values: Any) -> None:
    with pytest.raises(DataError, match="the evaluator must return a number or None as"):
        search_ratios(lambda ratios: values, cut(), Front(), evaluations=1)


def test_coordinates_and_ratios_are_the_same_points() -> None:
    generator = np.random.default_rng(0)
    for share in (None, 0.3):
        space = Space((1.0, 2.0, 5.0), share)
        for _ in range(20):
            ratios = space.draw(generator)
            assert np.allclose(space.decode(space.encode(ratios)), ratios, atol=1e-12)


@pytest.mark.parametrize(
    "value", [object(), math.nan, {"path": Path("x")}, [1, {2}], torch.ones(1)], ids=lambda value: type(value).__name__
)
def test_about_must_be_plain_and_nothing_is_left_where_it_is_not(value: Any, tmp_path: Path) -> None:
    for log in (None, tmp_path / "new" / "search.jsonl"):
        with pytest.raises(UsageError, match=r"about\['x'\] must be plain: finite numbers, texts"):
            search_ratios(world, cut(), Front(), evaluations=3, log=log, about={"seed": 1, "x": value})
    assert not list(tmp_path.iterdir())


def test_what_an_evaluator_returns_beside_numbers_is_logged_as_text_and_nothing_lost(tmp_path: Path) -> None:
    extras = {"model": object, "at": Path("x"), "n": np.int64(3), "r": np.float64(0.5), "t": torch.ones(2), 4: {1j}}
    found = search_ratios(lambda r: {**world(r), **extras}, cut(), Front(), evaluations=3, log=tmp_path / "log")
    kept = found.evaluations[0].values
    assert {key: kept[key] for key in ("n", "r", "t", "4")} == {"n": 3, "r": 0.5, "t": [1.0, 1.0], "4": "{1j}"}
    assert "Path" in kept["at"]
    again = search_ratios(world, cut(), Front(), evaluations=3, log=tmp_path / "log")
    assert (again.measured, again.evaluations) == (0, found.evaluations)


def test_an_about_that_is_given_again_opens_its_log(tmp_path: Path) -> None:
    about = {"models": ("a", "b"), 3: {"seed": 1.5, 2: None}}
    first, second = (
        search_ratios(world, cut(), Front(), evaluations=3, log=tmp_path / "log", about=about).measured  # type: ignore[arg-type]
        for _ in range(2)
    )
    assert (first, second) == (3, 0)


def test_a_full_disk_is_one_line_and_what_was_measured_stays(tmp_path: Path) -> None:
    log = tmp_path / "log"
    search_ratios(world, cut(), Front(), evaluations=2, log=log)
    before, limits = log.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    signals = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, limits[1]))  # ends within a line
    try:
        with pytest.raises(StoreError, match=r"log cannot be written: File too large"):
            search_ratios(world, cut(), Front(), evaluations=5, log=log)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, signals)
    assert log.read_bytes() == before
    assert search_ratios(world, cut(), Front(), evaluations=5, log=log).measured == 3


def test_a_device_is_no_log() -> None:
    with pytest.raises(StoreError, match="/dev/full cannot be opened: it is no file"):
        search_ratios(world, cut(), Front(), evaluations=3, log="/dev/full")
