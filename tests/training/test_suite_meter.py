"""A small suite on the policy as it trains: nothing changes, the tax is initial's, guards act, the best is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_attach import dpo, final
from test_drift_meter import METER, PROMPTS
from tiny import reward as even

from untaxed import measuring
from untaxed.callbacks import DriftMeter, ElasticReset, Guard
from untaxed.checkpoints import load_model, load_tokenizer
from untaxed.errors import StoreError, Unsupported
from untaxed.measuring import Item, Sampling, Subject, Suite, exact_match, measure
from untaxed.measuring.sampling import sample
from untaxed.sites import Host
from untaxed.training import KeepBest, SuiteMeter, SuiteMeterState, Task, attach
from untaxed.weights import same


@pytest.fixture(scope="module")
def suite(tiny_initial: Path) -> Suite:
    """Answers are what the initial model writes, so that it has all of the ability."""
    prompts = tuple(f"w{n} w{(5 * n + 1) % 27}" for n in range(24))
    drawn = sample(load_model(tiny_initial), load_tokenizer(tiny_initial), prompts, Sampling(2, 0.0))
    items = [Item(prompt, text) for prompt, text in zip(prompts, drawn.texts) if text.strip()]
    measures = (
        measuring.reward("proxy", even),
        exact_match("written", dict.fromkeys(("validation", "test"), items)),
        measuring.forward_kl(),
    )
    sampled = {"validation": prompts[:8], "test": prompts[8:12]}
    return Suite(measures, ("written",), (), sampled, Sampling(6, batch_size=8))


def read(trainer: Any, key: str) -> list[float]:
    return [line[key] for line in trainer.state.log_history if key in line]


def test_training_with_a_meter_is_bit_identical_and_readings_are_the_suites(
    tiny_task: Task, tmp_path: Path, suite: Suite
) -> None:
    plain = final(dpo(tiny_task, tmp_path / "a", max_steps=4, learning_rate=1e-2))
    trainer = dpo(tiny_task, tmp_path / "b", max_steps=4, learning_rate=1e-2)
    attach(trainer, SuiteMeter(suite, every=2))
    assert same(final(trainer), plain)
    tokenizer = load_tokenizer(tiny_task.initial)
    before = measure(Subject(load_model(tiny_task.initial), tokenizer, suite), "validation").values
    after = measure(Subject(trainer.model, tokenizer, suite), "validation").values
    had = before["abilities"]["written"]
    assert had > 0.9
    assert len(read(trainer, "suite/tax")) == 2
    assert read(trainer, "suite/abilities/written")[-1] == after["abilities"]["written"] < had
    assert read(trainer, "suite/reward/proxy")[-1] == after["reward"]["proxy"]
    assert read(trainer, "suite/tax")[-1] == pytest.approx(1 - after["abilities"]["written"] / had)
    assert not read(trainer, "suite/drift/forward_kl")


def test_no_copy_of_the_model_is_made(tiny_task: Task, tmp_path: Path, suite: Suite) -> None:
    trainer = dpo(tiny_task, tmp_path)
    state = SuiteMeterState(trainer.model, SuiteMeter(suite), Host(tokenizer=load_tokenizer(tiny_task.initial)))
    assert not any(isinstance(value, torch.Tensor) for value in vars(state).values())
    assert not [value for pairs in state.state_dict().values() for value in [pairs] if isinstance(value, torch.Tensor)]


def test_a_guard_stops_at_a_tax(tiny_task: Task, tmp_path: Path, suite: Suite, caplog: Any) -> None:
    trainer = dpo(tiny_task, tmp_path, max_steps=6, learning_rate=1e-2)
    attach(trainer, SuiteMeter(suite, every=1, guards=[Guard({"tax": 0.01}, do="stop")]))
    trainer.train()
    assert trainer.state.global_step < 6
    assert "suite guard at step" in caplog.text
    assert read(trainer, "suite/guard/stop/tax")[0] >= 0.01


def test_both_meters_watch_one_training(tiny_task: Task, tmp_path: Path, suite: Suite) -> None:
    trainer = dpo(tiny_task, tmp_path, max_steps=2)
    attached = attach(trainer, METER, SuiteMeter(suite, every=2))
    trainer.train()
    assert read(trainer, "drift/forward_kl")
    assert read(trainer, "suite/tax")
    assert attached.drift()["step"] == 2
    with pytest.raises(Unsupported, match="suite_meter is attached already"):
        attach(dpo(tiny_task, tmp_path), SuiteMeter(suite, every=2), SuiteMeter(suite, every=3))


def test_the_most_reward_of_little_tax_is_kept(tiny_task: Task, tmp_path: Path, suite: Suite) -> None:
    trainer = dpo(tiny_task, tmp_path / "t", max_steps=6, learning_rate=2e-3)
    attach(trainer, SuiteMeter(suite, every=1, keep_best=KeepBest(tmp_path / "kept", tax_at_most=0.5)))
    trainer.train()
    record = json.loads((tmp_path / "kept" / "best.json").read_text())
    rewards, taxes = read(trainer, "suite/reward/proxy"), read(trainer, "suite/tax")
    allowed = [reward for reward, tax in zip(rewards, taxes, strict=True) if tax <= 0.5]
    assert record["reward"] == max(allowed)
    assert record["step"] == rewards.index(max(allowed)) + 1
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["best", "best.json"]
    kept = Subject(load_model(tmp_path / "kept" / "best"), load_tokenizer(tmp_path / "kept" / "best"), suite)
    assert measure(kept, "validation").values["reward"]["proxy"] == record["reward"]


def test_a_resume_keeps_initial_and_best(tiny_task: Task, tmp_path: Path, suite: Suite) -> None:
    def built(name: str) -> tuple[Any, Any]:
        trainer = dpo(tiny_task, tmp_path / name, max_steps=6, learning_rate=1e-2, save_strategy="steps", save_steps=3)
        best = KeepBest(tmp_path / f"{name}-kept", tax_at_most=1)
        return trainer, attach(trainer, SuiteMeter(suite, every=1, keep_best=best))

    whole, _ = built("whole")
    whole.train()
    resumed, attached = built("resumed")
    attached.load_checkpoint(tmp_path / "whole" / "checkpoint-3")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert read(resumed, "suite/tax")[-3:] == read(whole, "suite/tax")[-3:]
    state = attached.state_dict()["states"][0]
    assert dict(state["initial"])["abilities.written"] > 0.9
    fewer = Suite(suite.measures[:1], (), (), suite.prompts, suite.sampling)
    host = Host(tokenizer=load_tokenizer(tiny_task.initial))
    other = SuiteMeterState(load_model(tiny_task.initial), SuiteMeter(fewer), host)
    with pytest.raises(StoreError, match="measures something else"):
        other.load_state_dict(state)


def test_lora_is_measured_with_its_adapter(tiny_task: Task, tmp_path: Path, suite: Suite) -> None:
    trainer = dpo(tiny_task, tmp_path, lora=True, max_steps=3, learning_rate=1e-1)
    attached = attach(trainer, SuiteMeter(suite, every=3), ElasticReset(decay=0.9, reset_every=2))
    trainer.train()
    assert dict(attached.state_dict()["states"][0]["initial"])["abilities.written"] > 0.9
    assert read(trainer, "suite/tax")[0] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"suite": "suite.yaml"}, "suite must be a suite, such as load_suite"),
        ({"every": 0}, "every must be a whole number"),
        ({"guards": [Guard({"abilities.facts": {"below": 0.5}})]}, "no measure 'abilities.facts'; did you mean 'abil"),
        ({"guards": [Guard({"forward_kl": 0.5})]}, "this meter has no measure 'forward_kl'"),
    ],
)
def test_settings_that_cannot_be_are_refused(suite: Suite, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SuiteMeter(**{"suite": suite, **settings})


def test_what_would_do_nothing_is_refused(tiny_task: Task, tmp_path: Path, suite: Suite) -> None:
    with pytest.raises(ValueError, match="this meter has no measure 'tax'"):
        DriftMeter(PROMPTS, guards=[Guard({"tax": 0.1})])
    with pytest.raises(ValueError, match="neither rewards nor abilities"):
        SuiteMeter(Suite(suite.measures[2:], (), (), suite.prompts))
    with pytest.raises(ValueError, match="keep_best goes by reward"):
        SuiteMeter(Suite(suite.measures[1:2], ("written",), (), suite.prompts), keep_best=KeepBest(tmp_path))
    with pytest.raises(Unsupported, match="would never measure: every is 50, training has 5 steps"):
        attach(dpo(tiny_task, tmp_path), SuiteMeter(suite))
    with pytest.raises(Unsupported, match="a guard is to 'reset', and no method that resets"):
        attach(dpo(tiny_task, tmp_path), SuiteMeter(suite, every=2, guards=[Guard({"tax": 0.1}, do="reset")]))
