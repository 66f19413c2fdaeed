from __future__ import annotations

import dataclasses
import json
import math
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build_model_dir, reward

from untaxed.checkpoints import load_model
from untaxed.errors import DataError, RunFailed, SpecError, StoreError, Unsupported
from untaxed.objectives import KL
from untaxed.training import ALGORITHMS, Task, make_trainer, train
from untaxed.training.recorder import Recorder
from untaxed.training.trainer import _check_reference
from untaxed.weights import same


def build(task: Task, name: str = "dpo", **arguments: Any) -> Any:
    return make_trainer(name, arguments, task=task, seed=0, output_dir="unused")


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.filterwarnings("ignore:grpo with beta 0")
def test_policy_and_reference_are_initial_in_float32(name: str, tiny_task: Task, tmp_path: Path) -> None:
    narrow = dataclasses.replace(tiny_task, initial=build_model_dir(tmp_path / "narrow", dtype="bfloat16"))
    trainer = build(narrow, name)
    expected = load_model(narrow.initial)
    for model in (trainer.model, trainer.ref_model):
        if model is None:  # grpo with beta 0 has no reference
            continue
        for parameter, initial in zip(model.parameters(), expected.parameters(), strict=True):
            assert parameter.dtype == torch.float32
            assert torch.equal(parameter, initial)
    assert (trainer.ref_model is None) == (name == "grpo")


def test_a_reference_that_is_not_initial_stops_the_run(tiny_task: Task) -> None:
    trainer = build(tiny_task)
    with torch.no_grad():
        trainer.ref_model.model.norm.weight[0] += 1e-6
    with pytest.raises(RunFailed, match=r"differs from .*initial at 'model\.norm\.weight' before the first step"):
        _check_reference(trainer, tiny_task)


def test_arguments_of_the_call_go_before_the_tasks(tiny_task: Task) -> None:
    assert build(tiny_task).args.learning_rate == 1e-3
    trainer = build(tiny_task, learning_rate="2e-4", batch_size=6, micro_batch_size=3)
    assert trainer.args.learning_rate == 2e-4
    assert trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps == 6
    kl = make_trainer("dpo", {"beta": 0.3}, task=tiny_task, seed=0, output_dir="unused", methods=[KL(beta=0.7)])
    assert kl.args.beta == kl.beta == 0.7


def test_a_trainer_is_quiet(tiny_task: Task, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer("rloo", {"max_steps": 2}, task=tiny_task, seed=0, output_dir=tmp_path)
    train(trainer, every=5, resume_dir=tmp_path / "resume", checkpoint_every=1)
    assert capfd.readouterr() == ("", "")
    assert trainer.args.report_to == []


def test_grpo_without_beta_says_that_drift_is_not_trained_against(tiny_task: Task) -> None:
    with pytest.warns(UserWarning, match="grpo with beta 0: drift from the initial model is not part of training"):
        build(tiny_task, "grpo")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build(tiny_task, "grpo", beta=0.1).ref_model is not None


def test_what_trl_refuses_is_a_spec_error(tiny_task: Task) -> None:
    with pytest.raises(SpecError, match=r"algorithm dpo: .*warmly"):
        build(tiny_task, lr_scheduler_type="warmly")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("dpo", {"preferences": ()}, "the preferences are empty"),
        ("kto", {"preferences": ({"prompt": "a", "chosen": "b", "rejected": "b"},)}, "row 1: chosen equals rejected"),
        ("rloo", {"reward": None}, "rloo needs a reward; the task has none"),
        ("rloo", {"prompts": ("w1", "w2")}, "2 prompts are too few: one batch of generations takes 4"),
    ],
)
def test_a_task_that_cannot_be_trained_is_said(tiny_task: Task, name: str, changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(dataclasses.replace(tiny_task, **changes), name)


def test_methods_are_checked_before_anything_is_loaded(tiny_task: Task) -> None:
    class Never(KL):
        def check(self, context: Any) -> None:
            raise Unsupported(f"not with {context.algorithm} for {context.max_steps} steps")

    missing = dataclasses.replace(tiny_task, initial=Path("nowhere"))
    with pytest.raises(Unsupported, match="not with dpo for 6 steps"):
        make_trainer("dpo", {}, task=missing, seed=0, output_dir="unused", methods=[Never(beta=1.0)])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(tiny_task: Task, tmp_path: Path, value: float) -> None:
    trainer = build(tiny_task)
    inner = trainer.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> torch.Tensor:
        loss = inner(*args, **kwargs)
        return loss * value if trainer.state.global_step == 2 else loss

    trainer.compute_loss = compute_loss
    with pytest.raises(RunFailed, match=f"the loss is {value} at step 3"):
        train(trainer, every=2, log=tmp_path / "log.jsonl")
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2]
    assert "training_step" not in vars(trainer)  # what was put around it is off again


def test_weights_that_are_not_finite_are_not_measured(tiny_task: Task) -> None:
    trainer = build(tiny_task, max_steps=1)

    def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
        trainer.model.model.norm.weight.grad = torch.full((32,), math.nan)
        return torch.zeros(())

    trainer.training_step = training_step
    with pytest.raises(RunFailed, match=r"the weights are not finite after step 1 .*'model\.norm\.weight' first"):
        train(trainer, every=1, observe=lambda moment: None)


def test_what_measuring_finds_names_the_step_and_the_remedy(tiny_task: Task) -> None:
    faults = {
        RunFailed(
            "drift.forward_kl of item 0 is [nan, 3.0]: the model has diverged"
        ): r"diverged; lower learning_rate$",
        DataError("reward 'proxy', row 0: expected a finite number, got nan; mend it"): "got nan; mend it$",
    }
    for fault, line in faults.items():

        def observe(moment: Any, fault: Exception = fault) -> None:
            if moment.step == 2:
                raise fault

        with pytest.raises(RunFailed, match=rf"^at step 2: .*{line}"):
            train(build(tiny_task), every=1, observe=observe)


def test_a_policy_that_cannot_be_sampled_from_any_more_names_the_step(tiny_task: Task) -> None:
    trainer = build(tiny_task, "rloo")
    inner = trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
        if trainer.state.global_step == 2:
            trainer.model.lm_head.weight.data.fill_(math.nan)
        return inner(*args, **kwargs)

    trainer.training_step = training_step
    with pytest.raises(RunFailed, match="the policy's probabilities are not finite at step 3; lower learning_rate"):
        train(trainer, every=9)


def test_rows_that_trl_drops_are_said(tiny_task: Task) -> None:
    long = {"prompt": "w1 " * 20, "chosen": " w2", "rejected": " w3"}
    task = dataclasses.replace(tiny_task, preferences=[*tiny_task.preferences, long])
    with pytest.warns(UserWarning, match=r"1 of 25 rows have prompts of 12 tokens or more \(max_length\) and are left"):
        build(task, max_length=12)


@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        (
            ValueError("a story\nits point"),
            SpecError,
            "algorithm dpo: TRL cannot build DPOTrainer .*: ValueError: its point",
        ),
        (MemoryError(), RunFailed, "algorithm dpo: no memory for its trainer: MemoryError"),
    ],
)
def test_what_the_trainer_raises_is_one_line(
    tiny_task: Task, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], line: str
) -> None:
    import trl

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(trl.DPOTrainer, "__init__", fail)
    with pytest.raises(kind, match=line) as caught:
        build(tiny_task)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("broken", [[0.5], [math.nan] * 8])
def test_a_broken_reward_stops_the_run_at_its_step(tiny_task: Task, broken: list[float]) -> None:
    calls: list[int] = []

    def breaks_later(prompts: Any, completions: Any) -> list[float]:
        calls.append(len(prompts))
        return broken if len(calls) == 3 else reward(prompts, completions)

    trainer = build(dataclasses.replace(tiny_task, reward=breaks_later), "rloo")
    with pytest.raises(RunFailed, match=r"at step 3: reward .proxy.*return one finite number"):
        train(trainer, every=2)
    assert calls == [8, 8, 8]


def test_a_foreign_resume_folder_is_refused(tiny_task: Task, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(StoreError, match="is not a resume folder of ours"):
        train(build(tiny_task), every=2, resume_dir=tmp_path, checkpoint_every=2)


def test_a_full_disk_is_said_and_the_last_whole_checkpoint_stays(
    tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, saved = torch.save, []

    def save(content: Any, path: Any, *rest: Any) -> None:
        saved.append(path)
        if "checkpoint-4" in str(path):
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
        real(content, path, *rest)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(StoreError, match=r"cannot write .*resume: no space left on the device; free some"):
        train(build(tiny_task), every=9, resume_dir=tmp_path / "resume", checkpoint_every=2)
    monkeypatch.undo()
    resumed = build(tiny_task)
    train(resumed, every=9, resume_dir=tmp_path / "resume", checkpoint_every=2)
    straight = build(tiny_task)
    train(straight, every=9)
    assert same(dict(resumed.model.state_dict()), dict(straight.model.state_dict()))


def test_options_that_make_no_sense_are_refused(tiny_task: Task) -> None:
    trainer = build(tiny_task)
    several = types.SimpleNamespace(args=types.SimpleNamespace(world_size=2), callback_handler=None)
    with pytest.raises(Unsupported, match="resume_dir serves one process"):
        Recorder(several, float, log=None, resume_dir=Path("x"), checkpoint_every=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        train(trainer, every=0)
    with pytest.raises(ValueError, match="checkpoint_every must be at least 1 and needs resume_dir"):
        train(trainer, every=1, checkpoint_every=2)


def test_time_for_measuring_is_not_training_time(tiny_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("untaxed.training.loop.time.perf_counter", lambda: clock[0])

    def observe(moment: Any) -> None:
        clock[0] += 100

    trainer = build(tiny_task, max_steps=2)
    inner = trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
        clock[0] += 1
        return inner(*args, **kwargs)

    trainer.training_step = training_step
    outcome = train(trainer, every=1, observe=observe)
    assert outcome.train_seconds == 2
    assert outcome.peak_bytes > 10_000_000


def test_what_is_installed_is_asked_once_a_run(tiny_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils import modeling

    asked: list[int] = []
    inner = modeling.is_peft_available
    monkeypatch.setattr(modeling, "is_peft_available", lambda: asked.append(1) or inner())
    trainer, counting = build(tiny_task, max_steps=3), modeling.is_peft_available
    asked.clear()
    train(trainer, every=3)
    assert len(asked) == 1
    assert modeling.is_peft_available is counting
