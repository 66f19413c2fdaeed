"""The suite meter on saved weights: another process reads what the policy reads, or says in one line why not."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from test_attach import dpo, final

from untaxed import comparison
from untaxed.checkpoints import load_model, load_tokenizer, save_model
from untaxed.comparison import load_suite
from untaxed.comparison.saved import LAUNCHED, SavedReading
from untaxed.errors import RunFailed, Unsupported
from untaxed.sites import Context, Host
from untaxed.training import KeepBest, SuiteMeter, SuiteMeterState, Task, attach
from untaxed.weights import same

SUITE = """
prompts: {path: prompts.jsonl}
reward: {proxy: "tiny:reward"}
win_rates: {even: {reward: "tiny:reward"}}
abilities: {select: [{name: choices, kind: multiple_choice, rows: {path: choices.jsonl}}]}
max_new_tokens: 6
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> comparison.suite_file.Loaded:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    prompts = [f"w{n % 27} w{(5 * n + 1) % 27}" for n in range(60)]
    choices = [{"prompt": p, "choices": [f"w{n % 5}", f"w{n % 7 + 9}"], "answer": n % 2} for n, p in enumerate(prompts)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    (tmp_path / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in choices))
    (tmp_path / "suite.yaml").write_text(SUITE)
    return load_suite(tmp_path / "suite.yaml", ["abilities.select.0.limit=20"])


def host(initial: Path) -> tuple[Any, Host]:
    model, tokenizer = load_model(initial), load_tokenizer(initial)
    return model, Host(tokenizer=tokenizer, save=lambda folder: save_model(model, tokenizer, folder))


def test_another_process_reads_what_the_policy_reads(tiny_task: Task, tmp_path: Path, suite: Any) -> None:
    readings, finals = [], []
    for place in (True, False):
        trainer = dpo(tiny_task, tmp_path / str(place), max_steps=2, learning_rate=1e-2)
        attach(trainer, SuiteMeter(suite, every=2, in_process=place))
        finals.append(final(trainer))
        readings.append([{k: v for k, v in line.items() if "suite/" in k} for line in trainer.state.log_history])
    assert same(*finals)
    assert any("suite/abilities/choices" in line for line in readings[0])
    assert not any("suite/reward/even" in line for line in readings[0])  # it compares with initial
    for ours, theirs in zip(*readings, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-6)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_process_that_fails_is_one_line_and_leaves_nothing(tiny_task: Task, tmp_path: Path, suite: Any) -> None:
    model, given = host(tiny_task.initial)
    with (tmp_path / "choices.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "w1", "choices": ["w2", "w3"], "answer": 0}) + "\n")
    with pytest.raises(RunFailed) as failed:
        SuiteMeterState(model, SuiteMeter(suite, in_process=False), given)
    assert str(failed.value) == (
        f"the suite could not be read on the saved policy: {tmp_path / 'suite.yaml'}: abilities.choices is another one "
        "than when training began; put it back"
    )
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_process_that_is_killed_says_so(tiny_task: Task, tmp_path: Path, suite: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("RANK", "1")  # of a launcher, for whose other processes nobody waits
    _, given = host(tiny_task.initial)
    assert given.save is not None
    given.save(tmp_path / "policy")
    reading = SavedReading(suite, tmp_path, ["abilities.choices"])
    assert reading.wait(0.01) is None
    assert b"RANK=" not in Path(f"/proc/{reading._process.pid}/environ").read_bytes()
    os.kill(reading._process.pid, signal.SIGKILL)
    with pytest.raises(RunFailed, match=r"its process was killed by SIGKILL \(out of memory\?\)"):
        reading.wait(30)
    reading.close()


def test_an_interrupt_ends_the_process(tiny_task: Task, tmp_path: Path, suite: Any, monkeypatch: Any) -> None:
    begun: list[SavedReading] = []

    class Interrupted(SavedReading):
        def wait(self, seconds: float) -> dict[str, float] | None:
            begun.append(self)
            raise KeyboardInterrupt

    monkeypatch.setattr("untaxed.comparison.saved.SavedReading", Interrupted)
    model, given = host(tiny_task.initial)
    with pytest.raises(KeyboardInterrupt):
        SuiteMeterState(model, SuiteMeter(suite, in_process=False), given)
    assert begun[0]._process.poll() == -signal.SIGKILL
    assert list((tmp_path / "temporary").iterdir()) == []


def whole_only(suite: Any) -> Any:
    """The suite with a measure that reads whole models only, as tasks of lm-evaluation-harness do."""
    measures = tuple(dataclasses.replace(one, sharded=one.group != "abilities") for one in suite.suite.measures)
    return dataclasses.replace(suite, suite=dataclasses.replace(suite.suite, measures=measures))


def test_where_a_policy_is_read(tiny_task: Task, suite: Any, monkeypatch: Any) -> None:
    plain, whole = SuiteMeter(suite), SuiteMeter(whole_only(suite))
    assert [one.reads_apart(sharded=lies) for one in (plain, whole) for lies in (False, True)] == [0, 0, 0, 1]
    assert SuiteMeter(suite, in_process=False).reads_apart(sharded=False)
    model, given = host(tiny_task.initial)
    next(model.parameters()).device_mesh = object()
    told = {"reward.proxy": 0.5, "abilities.choices": 0.25}
    monkeypatch.setattr(SavedReading, "__init__", lambda *_: None)
    monkeypatch.setattr(SavedReading, "wait", lambda *_: told)
    monkeypatch.setattr(SavedReading, "close", lambda _: None)
    assert SuiteMeterState(model, SuiteMeter(whole_only(suite)), given).initial == told


def test_what_cannot_be_read_is_refused_before_any_step(tiny_task: Task, suite: Any) -> None:
    sharded = Context("dpo", 100, backend="fsdp2")
    SuiteMeter(whole_only(suite)).check(sharded)
    with pytest.raises(Unsupported, match="choices cannot be read on a sharded policy; leave in_process out"):
        SuiteMeter(whole_only(suite), in_process=True).check(sharded)
    with pytest.raises(
        Unsupported, match=r'choices cannot be read on a sharded policy: give the suite as load_suite\("'
    ):
        SuiteMeter(whole_only(suite).suite).check(sharded)
    with pytest.raises(Unsupported, match=r"an adapter \(LoRA\) that alone is saved; take choices out"):
        SuiteMeter(whole_only(suite)).check(dataclasses.replace(sharded, lora=True))
    with pytest.raises(ValueError, match=r'give the suite as load_suite\("suite.yaml"\) returns it'):
        SuiteMeter(suite.suite, in_process=False)
    model, given = host(tiny_task.initial)
    with pytest.raises(Unsupported, match=r"saved copy; a plain loop says how: give host=Host\(save=…\)"):
        SuiteMeterState(model, SuiteMeter(suite, in_process=False), Host(tokenizer=given.tokenizer))
    others = tuple(one for one in suite.suite.measures if one.name != "proxy")
    with pytest.raises(ValueError, match="none called proxy or gold"):
        SuiteMeter(dataclasses.replace(suite.suite, measures=others), keep_best=KeepBest("best"))


def test_a_gpu_without_room_leaves_it_to_the_cpu(tiny_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    from untaxed.comparison.saved import _device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    size = 4 * sum(one.numel() for one in load_model(tiny_task.initial).parameters())
    for free, place in ((1.4 * size, "cpu"), (1.6 * size, "cuda")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 10 * size))
        assert _device(tiny_task.initial).type == place


def test_what_launchers_tell_their_processes_is_left_out() -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "ACCELERATE_USE_FSDP", "TORCHELASTIC_RUN_ID"):
        assert name.startswith(LAUNCHED)
    assert not any(name.startswith(LAUNCHED) for name in ("PATH", "HF_HOME", "CUDA_VISIBLE_DEVICES", "TMPDIR"))
