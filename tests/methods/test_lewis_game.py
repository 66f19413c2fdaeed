"""A few hundred steps of the Lewis game in `benchmarks/`: what it measures, and that Elastic Reset acts as it must."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from untaxed.weights import same, snapshot

FILE = Path(__file__).parents[2] / "benchmarks" / "lewis_game.py"


@pytest.fixture(scope="module")
def lewis() -> Iterator[ModuleType]:
    spec = spec_from_file_location("lewis_game", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["lewis_game"] = module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["lewis_game"]


def play(lewis: ModuleType, method: str, algorithm: str = "gumbel", seed: int = 0, **options: Any) -> list[dict]:
    rate = {"gumbel": 1e-3, "reinforce": 3e-3}[algorithm]
    return lewis.play(lewis.Game(algorithm, rate, steps=300, points=3), method, options, [seed])


@pytest.fixture(scope="module")
def plain(lewis: ModuleType) -> list[dict]:
    return play(lewis, "plain")


@pytest.mark.parametrize("algorithm", ["gumbel", "reinforce"])
def test_a_seed_gives_the_same_numbers_again(lewis: ModuleType, algorithm: str) -> None:
    points, again = (play(lewis, "elastic_reset", algorithm, decay=0.9, reset_every=100) for _ in range(2))
    assert points == again


def test_another_seed_is_another_game(lewis: ModuleType, plain: list[dict]) -> None:
    assert plain[0]["words_test"] != play(lewis, "plain", seed=1)[0]["words_test"]


def test_the_language_is_learned_then_play_gains_tasks_and_costs_words(plain: list[dict]) -> None:
    first, *_, last = plain
    assert first["words_test"][0] > 0.95
    assert first["task_played"][0] < 0.7  # the listener has hardly been taught
    assert last["task_played"][0] > 0.9
    assert last["words_test"][0] < first["words_test"][0] - 0.02


def test_a_strong_penalty_keeps_the_words(lewis: ModuleType, plain: list[dict]) -> None:
    assert play(lewis, "kl", beta=10.0)[-1]["words_played"][0] > plain[-1]["words_played"][0]


def test_resets_are_measured_before_and_after_and_none_comes_at_the_end(lewis: ModuleType, plain: list[dict]) -> None:
    points = play(lewis, "elastic_reset", decay=0.9, reset_every=100)
    phases = [(0, None), (100, "before"), (100, "after"), (200, "before"), (200, "after"), (300, "before")]
    assert [(point["step"], point["phase"]) for point in points] == phases
    assert points[1]["words_test"] == plain[1]["words_test"]  # nothing but the reset differs
    assert points[-1]["words_test"] != plain[-1]["words_test"]


def test_decay_1_is_reset_to_initial(lewis: ModuleType) -> None:
    elastic = play(lewis, "elastic_reset", decay=1.0, reset_every=100)
    assert elastic == play(lewis, "reset_to_initial", reset_every=100)
    assert elastic[2]["words_test"] == elastic[0]["words_test"]


def test_a_run_of_the_average_trains_like_plain(lewis: ModuleType, plain: list[dict]) -> None:
    assert play(lewis, "average_only", decay=0.0) == plain
    assert play(lewis, "average_only", decay=0.9) != plain


@pytest.mark.parametrize("method", ["elastic_reset", "reset_to_average"])
def test_after_a_reset_the_speaker_is_the_average(lewis: ModuleType, method: str) -> None:
    players = lewis.Players(lewis.GAMES["gumbel"], [0])
    beside = lewis.between_steps("average_only", players.speaker, {"decay": 0.8})
    between = lewis.between_steps(method, players.speaker, {"decay": 0.8, "reset_every": 200})
    optimizer = torch.optim.AdamW(players.speaker.parameters(), 1e-3)
    for step in range(1, 201):
        optimizer.zero_grad()
        players.loss(0.0).backward()
        optimizer.step()
        before = snapshot(players.speaker)
        beside.step()
        assert between.step() == (step == 200)
    assert same(snapshot(players.speaker), beside.average.tensors())
    assert not same(snapshot(players.speaker), before)
