"""The drift meter and its guards in trainers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from test_attach import dpo, final, stand_in
from test_laws import KilledError, read_log, run
from torch import nn
from transformers import TrainerCallback

from untaxed.callbacks import DriftMeter, ElasticReset, Guard
from untaxed.errors import RunFailed, StoreError, Unsupported
from untaxed.method import Method
from untaxed.sites import ALONE, Host, Site
from untaxed.studies.runs import _trainer
from untaxed.together import check_together
from untaxed.training import Moment, Task, attach, train
from untaxed.training.drift import with_meter
from untaxed.training.steering import scale_lr
from untaxed.weights import same, snapshot

PROMPTS = ["w1 w2", "w3", "w4 w5 w6"]
METER = DriftMeter(PROMPTS, every=2, max_new_tokens=5)
RESET = ElasticReset(decay=0.6, reset_every=3)
NAMES = {"drift/forward_kl", "drift/entropy", "drift/length", "drift/distinct_1", "drift/distinct_2", "drift/tokens"}


def guarded(do: Any, limit: float = 1e-6, **settings: Any) -> DriftMeter:
    """A meter with a guard that any drift sets off."""
    guard = Guard({"forward_kl": limit}, do=do, **settings)
    return DriftMeter(PROMPTS, every=2, max_new_tokens=5, guards=[guard])


def without_drift(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if not key.startswith("drift/")} for line in lines]


@pytest.mark.parametrize("name", ["dpo", "rloo"])
def test_training_with_a_meter_is_bit_identical_and_so_is_its_log(tiny_task: Task, tmp_path: Path, name: str) -> None:
    plain, _ = run(tiny_task, name, RESET, folder=tmp_path, log=tmp_path / "plain.jsonl")
    metered, _ = run(tiny_task, name, METER, RESET, folder=tmp_path, log=tmp_path / "metered.jsonl")
    assert same(plain, metered)
    lines = read_log(tmp_path / "metered.jsonl")
    # one line a step, with the reading among what the trainer logs, which is what it would have been
    assert [line["step"] for line in lines if line.keys() >= NAMES] == [2, 4, 6]
    assert without_drift(lines) == read_log(tmp_path / "plain.jsonl")
    assert "rewards/margins" in lines[1] if name == "dpo" else "kl" in lines[1]


@pytest.mark.filterwarnings("ignore:grpo with beta 0")
def test_drift_is_measured_where_the_algorithm_has_no_kl(tiny_task: Task, tmp_path: Path) -> None:
    run(tiny_task, "grpo", METER, folder=tmp_path, log=tmp_path / "log.jsonl", arguments={"learning_rate": 1e-2})
    lines = read_log(tmp_path / "log.jsonl")
    assert all("kl" not in line for line in lines)
    assert [line["drift/forward_kl"] > 0 for line in lines if line.keys() >= NAMES] == [True, True, True]


def test_beta_changes_nothing_in_what_is_measured(tiny_task: Task, tmp_path: Path) -> None:
    for beta in (0.1, 5.0):
        arguments = {"beta": beta, "max_steps": 2, "learning_rate": 1e-30}
        run(tiny_task, "dpo", METER, folder=tmp_path, log=tmp_path / f"{beta}.jsonl", arguments=arguments)
    first, second = ({k: read_log(tmp_path / f"{beta}.jsonl")[-1][k] for k in NAMES} for beta in (0.1, 5.0))
    assert first == second
    assert first["drift/forward_kl"] == 0  # nothing was learned


class Tracker(TrainerCallback):
    """Stands for TensorBoard and its kind."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.seen.append((state.global_step, dict(logs)))


def test_values_reach_every_tracker_and_the_trainers_own_lines_stay(tiny_task: Task, tmp_path: Path) -> None:
    seen = {}
    for metered in (False, True):
        trainer = dpo(tiny_task, tmp_path, max_steps=6, logging_steps=3)
        tracker = Tracker()
        trainer.add_callback(tracker)
        if metered:
            attach(trainer, METER)
        trainer.train()
        seen[metered] = tracker.seen
    ours = [(step, logs) for step, logs in seen[True] if logs.keys() & NAMES]
    theirs = [(step, logs) for step, logs in seen[True] if not logs.keys() & NAMES]
    assert [step for step, _ in ours] == [2, 4, 6]
    assert all(logs.keys() == NAMES | {"epoch"} for _, logs in ours)
    assert [(step, logs.get("loss"), logs.get("rewards/margins")) for step, logs in theirs] == [
        (step, logs.get("loss"), logs.get("rewards/margins")) for step, logs in seen[False]
    ]
    assert {"drift/forward_kl", "step"} <= trainer.state.log_history[0].keys()


def test_steps_that_the_trainer_does_not_log_have_a_line_of_their_own(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path, max_steps=5, logging_steps=3)
    train(trainer, attach(trainer, METER), every=9, log=tmp_path / "log.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], "loss" in line, "drift/length" in line) for line in lines] == [
        (2, False, True), (3, True, False), (4, False, True),
    ]  # fmt: skip


def test_resume_keeps_samples_and_guards(tiny_task: Task, tmp_path: Path) -> None:
    meter = DriftMeter(PROMPTS, every=2, max_new_tokens=5, guards=[Guard({"forward_kl": 1e-9})])
    options: dict[str, Any] = {"resume_dir": tmp_path / "resume", "checkpoint_every": 3, "log": tmp_path / "log.jsonl"}
    straight, _ = run(tiny_task, "dpo", meter, RESET, folder=tmp_path, log=tmp_path / "straight.jsonl")

    def kill(moment: Moment) -> None:
        if moment.step >= 5:
            raise KilledError

    with pytest.raises(KilledError):
        run(tiny_task, "dpo", meter, RESET, folder=tmp_path, observe=kill, **{**options, "arguments": None})
    resumed, _ = run(tiny_task, "dpo", meter, RESET, folder=tmp_path, **options)
    assert same(straight, resumed)
    assert read_log(tmp_path / "log.jsonl") == read_log(tmp_path / "straight.jsonl")
    guards = [line["step"] for line in read_log(tmp_path / "log.jsonl") if "drift/guard/warn/forward_kl" in line]
    assert guards == [2]  # once, also after the resume


def test_other_prompts_do_not_resume(tiny_task: Task, tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    trainer = dpo(tiny_task, tmp_path, **options)
    attach(trainer, METER)
    trainer.train()
    other = attach(dpo(tiny_task, tmp_path, **options), DriftMeter(PROMPTS[:2], every=2, max_new_tokens=5))
    with pytest.raises(StoreError, match=r"belongs to the methods .*3, sha256 .* attached are .*2, sha256"):
        other.load_checkpoint(tmp_path / "checkpoint-2")


def test_lora_is_measured_from_the_model_below(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path, lora=True, max_steps=2, learning_rate=1e-2)
    attached = attach(trainer, METER)
    trainer.train()
    ours = attached.drift()
    with trainer.model.disable_adapter():
        below = attached._meters["drift_meter"].measure()
    assert ours["forward_kl"] > 0 == below["forward_kl"]


# --- What methods and guards do with it -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Reads(Method):
    """A method that looks at the drift at every step."""

    name: ClassVar[str] = "reads"
    acts: ClassVar[frozenset[Site]] = frozenset({"between"})
    seen: ClassVar[list[Mapping[str, float]]] = []
    reset_when: ClassVar[dict[str, float]] = {"forward_kl": 1.0}

    def settings(self) -> dict[str, Any]:
        return {}

    def between(self, model: nn.Module, host: Host = ALONE) -> Any:
        def step() -> bool:
            assert host.drift is not None
            Reads.seen.append(host.drift())
            return False

        acts = {"step": staticmethod(step), "skip": staticmethod(step), "due": lambda _: False}
        return type("Live", (), {**acts, "state_dict": lambda _: {}})()


def test_methods_see_the_reading_of_their_step(tiny_task: Task, tmp_path: Path) -> None:
    Reads.seen.clear()
    trainer = dpo(tiny_task, tmp_path, max_steps=5)
    attached = attach(trainer, Reads(), METER)  # the meter acts first wherever it stands in the list
    trainer.train()
    assert [reading.get("step") for reading in Reads.seen] == [None, 2, 2, 4, 4]
    assert Reads.seen[0] == {}
    assert {f"drift/{key}" for key in Reads.seen[1]} == NAMES | {"drift/step"}
    assert attached.drift() == Reads.seen[-1]


def test_a_stop_ends_training_as_the_trainer_does(tiny_task: Task, tmp_path: Path, caplog: Any) -> None:
    trainer = dpo(tiny_task, tmp_path, max_steps=6, save_strategy="steps", save_steps=2)
    attached = attach(trainer, guarded("stop"), RESET)
    seen: list[tuple[int, bool]] = []
    attached.observer = lambda step, *, last, phase: seen.append((step, last))
    trainer.train()
    assert trainer.state.global_step == 2
    assert seen == [(1, False), (2, True)]
    assert (tmp_path / "checkpoint-2" / "untaxed").is_dir()
    assert "drift guard at step 2: forward_kl is " in caplog.text
    assert "limit above 1e-06; training stops here" in caplog.text
    assert any("drift/guard/stop/forward_kl" in line and line["step"] == 2 for line in trainer.state.log_history)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_lower_learning_rate_stays_lower(tiny_task: Task, tmp_path: Path, schedule: str) -> None:
    rates = {}
    for do in ("warn", "lower_lr"):
        trainer = dpo(tiny_task, tmp_path, max_steps=6, logging_steps=1, lr_scheduler_type=schedule)
        attach(trainer, guarded(do, factor=0.25))
        trainer.train()
        rates[do] = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
        end = [group["lr"] for group in trainer.optimizer.param_groups]
    assert rates["lower_lr"] == pytest.approx([rate * (0.25 if at else 1) for at, rate in scaled(rates["warn"])])
    assert end == pytest.approx([0.25 * trainer.args.learning_rate if schedule == "constant" else 0.0] * len(end))


@pytest.mark.parametrize("kind", ["one_cycle", "cyclic", "cosine"])
def test_a_lower_learning_rate_holds_under_schedules_that_keep_their_rates_elsewhere(kind: str) -> None:
    rates = {}
    for factor in (1.0, 0.25):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        schedule: Any = {
            "one_cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=12),
            "cyclic": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.1, 1.0, step_size_up=3, cycle_momentum=False),
            "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 12, eta_min=0.02),
        }[kind](optimizer)
        trainer: Any = SimpleNamespace(optimizer=optimizer, lr_scheduler=schedule)
        taken = []
        for step in range(10):
            if step == 3:
                scale_lr(trainer, factor)
            taken.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        rates[factor] = taken
    assert rates[0.25][:3] == rates[1.0][:3]
    assert rates[0.25][3:] == pytest.approx([0.25 * rate for rate in rates[1.0][3:]])


def scaled(rates: list[float]) -> list[tuple[bool, float]]:
    """With whether the guard, which acts after step 2, has lowered the rate that each step is taken with."""
    return [(step > 2, rate) for step, rate in enumerate(rates, start=1)]


def test_a_lower_learning_rate_survives_a_resume(tiny_task: Task, tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "lr_scheduler_type": "constant"}
    straight = dpo(tiny_task, tmp_path, **options)
    attach(straight, guarded("lower_lr"))
    expected = final(straight)
    resumed = dpo(tiny_task, tmp_path, **options)
    attach(resumed, guarded("lower_lr"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert same(expected, {name: tensor.detach() for name, tensor in resumed.model.named_parameters()})
    assert {group["lr"] for group in resumed.optimizer.param_groups} == {0.5e-3}


def test_a_reset_on_measured_drift(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path, max_steps=4)
    attached = attach(trainer, guarded("reset"), ElasticReset(decay=1.0, reset_every=3))
    initial = snapshot(trainer.model)
    seen: list[tuple[int, str | None, bool]] = []
    attached.observer = lambda step, *, last, phase: seen.append((step, phase, same(snapshot(trainer.model), initial)))
    trainer.train()
    # asked at 2, long before the clock; the last step's is skipped
    assert seen == [(1, None, False), (2, "before", False), (2, "after", True), (3, None, False), (4, None, False)]


def test_a_method_resets_by_what_the_meter_reads(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path, max_steps=6)
    attached = attach(trainer, ElasticReset(decay=0.9, reset_when={"forward_kl": 1e-6}), METER)
    seen: list[tuple[int, float]] = []
    attached.observer = lambda step, *, last, phase: seen.append((step, attached.drift()["step"])) if phase else None
    trainer.train()
    assert seen == [(2, 2), (2, 2), (4, 4), (4, 4)]  # at its own readings, never twice at one; not at the last step


def test_a_reset_waits_until_no_samples_are_left(tiny_task: Task, tmp_path: Path) -> None:
    meter = DriftMeter(PROMPTS, every=3, max_new_tokens=5, guards=[Guard({"forward_kl": 1e-9}, do="reset")])
    seen: list[tuple[int, str | None]] = []
    arguments = {"num_iterations": 2, "max_steps": 8}
    run(
        tiny_task, "rloo", meter, ElasticReset(decay=0.6, reset_every=6), folder=tmp_path, arguments=arguments,
        observe=lambda moment: seen.append((moment.step, moment.phase)) if moment.phase else None,
    )  # fmt: skip
    assert seen == [(4, "before"), (4, "after"), (6, "before"), (6, "after")]  # asked at 3 and at 6, which is free


def test_weights_that_are_not_finite_stop_the_run(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path)
    attached = attach(trainer, METER)

    def break_it(step: int, *, last: bool, phase: str | None) -> None:
        with torch.no_grad():
            trainer.model.model.norm.weight[0] = torch.nan

    attached.observer = break_it
    with pytest.raises(RunFailed, match=r"the weights are not finite after step 2 \('model\."):
        trainer.train()


def test_moments_count_no_resets_where_there_is_only_a_meter(tiny_task: Task, tmp_path: Path) -> None:
    seen: list[Moment] = []
    run(tiny_task, "dpo", METER, folder=tmp_path, arguments={"max_steps": 2}, observe=seen.append)
    assert [moment.steps_since_reset for moment in seen] == [None]


def test_what_cannot_work_is_refused_with_the_way_out(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path)
    with pytest.raises(Unsupported, match="a guard is to 'reset', and no method that resets the policy is attached"):
        attach(trainer, guarded("reset"))
    with pytest.raises(Unsupported, match="drift_meter would never measure: every is 9, training has 5 steps"):
        attach(trainer, DriftMeter(PROMPTS, every=9))
    with pytest.raises(Unsupported, match="drift_meter is attached already; a trainer has one"):
        attach(trainer, METER, DriftMeter(PROMPTS[:1], every=2))
    with pytest.raises(Unsupported, match="drift_meter cannot act under deepspeed"):
        attach(stand_in(is_deepspeed_enabled=True), METER)
    with pytest.raises(Unsupported, match="draws texts and needs a tokenizer: build the trainer with processing_class"):
        attach(stand_in(processing_class=None), METER)
    attach(trainer, ElasticReset(decay=0.5, reset_when={"forward_kl": 0.5}))
    with pytest.raises(Unsupported, match=r"reset_when needs a drift meter beside it: attach\(trainer, DriftMeter"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_describe_is_plain(tiny_task: Task, tmp_path: Path) -> None:
    meter = DriftMeter(PROMPTS, every=2, initial=tiny_task.initial, guards=[Guard({"forward_kl": 0.5}, do="lower_lr")])
    described = attach(dpo(tiny_task, tmp_path), meter).describe()["methods"][0]
    assert json.loads(json.dumps(described)) == described
    assert described["initial"] == str(tiny_task.initial)
    assert described["prompts"].startswith("3, sha256 ")
    assert described["guards"] == [{"when": [["forward_kl", "above", 0.5]], "do": "lower_lr", "factor": 0.5}]


def test_a_study_meters_what_reads_drift_and_nothing_else(tiny_task: Task, tmp_path: Path) -> None:
    assert with_meter([RESET], tiny_task, steps=9) == [RESET]
    meter, reads = with_meter([Reads()], tiny_task, steps=6)
    assert isinstance(meter, DriftMeter)
    assert meter.prompts == tiny_task.suite.prompts["validation"]
    assert meter.max_new_tokens == tiny_task.suite.sampling.max_new_tokens
    assert with_meter([METER, reads], tiny_task, steps=9) == [METER, reads]
    assert meter.general_prompts is None
    general = replace(tiny_task, suite=replace(tiny_task.suite, general={"validation": ("w9",), "test": ("w8",)}))
    assert with_meter([reads], general, steps=6)[0].general_prompts is None  # nobody asks for it
    asks = ElasticReset(decay=0.9, reset_when={"general_entropy": {"below": 0.1}})
    assert with_meter([asks], general, steps=6)[0].general_prompts == ("w9",)
    with pytest.raises(Unsupported, match=r"goes by general_entropy, .*\(in a study measure.general_prompts\)"):
        check_together(with_meter([asks], tiny_task, steps=6))
    bench = SimpleNamespace(
        spec=SimpleNamespace(algorithm=SimpleNamespace(name="dpo"), checkpoint_every=None),
        arguments={},
        steps=6,
        task=tiny_task,
    )
    plan = SimpleNamespace(training=(RESET, Reads()), seed=0, key="run")
    _, attached = _trainer(bench, SimpleNamespace(run=lambda key: tmp_path / key), plan)
    assert attached.methods == (meter, *plan.training)
