"""Laws of `train`, each on every algorithm it concerns: weights are compared bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from untaxed.callbacks import EMA, ElasticReset, WeightAverage
from untaxed.errors import Unsupported
from untaxed.method import Method
from untaxed.training import Moment, Outcome, Task, join, make_trainer, train
from untaxed.training.around import _kl_of
from untaxed.training.reference import check_reference_arguments
from untaxed.weights import same, trainable

RESET = ElasticReset(decay=0.6, reset_every=3)


class KilledError(Exception):
    """Stands for kill -9: nothing after it runs."""


def run(
    task: Task,
    name: str,
    *methods: Method,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
    observe: Callable[[Moment], None] | None = None,
    folder: Path,
    **options: Any,
) -> tuple[dict[str, Tensor], Outcome]:
    """One run; returns its final weights."""
    trainer = make_trainer(name, arguments or {}, task=task, seed=seed, output_dir=folder, methods=methods)
    attached = join(trainer, methods)
    outcome = train(trainer, attached, every=2, observe=observe, **options)
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}, outcome


def read_log(path: Path) -> list[dict[str, Any]]:
    """A run's log without times, and without TRL's count of tokens, which starts again at a resume."""
    lines = map(json.loads, path.read_text().splitlines())
    return [{key: line[key] for key in line if key not in ("num_tokens", "step_time")} for line in lines]


def disturb(moment: Moment) -> None:
    """What a careless measurement does: uses every random state, changes modes, runs and generates."""
    torch.rand(3)
    np.random.rand(3)
    moment.model.train()
    ids = torch.tensor([[1, 4, 5]])
    moment.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=True)
    with torch.no_grad():
        moment.model(ids)


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto", "rloo", "grpo"])
@pytest.mark.filterwarnings("ignore:grpo with beta 0")
def test_measuring_never_changes_training_and_seeds_decide(tiny_task: Task, tmp_path: Path, name: str) -> None:
    plain, outcome = run(tiny_task, name, folder=tmp_path)
    measured, _ = run(tiny_task, name, folder=tmp_path, observe=disturb)
    other, _ = run(tiny_task, name, folder=tmp_path, seed=1)
    assert outcome.steps == 6
    assert same(plain, measured)
    assert not same(plain, other)


def test_moments_of_a_run_with_resets(tiny_task: Task, tmp_path: Path) -> None:
    seen: list[tuple[int, str | None, int | None]] = []
    states: dict[tuple[int, str | None], dict[str, Tensor]] = {}

    def observe(moment: Moment) -> None:
        seen.append((moment.step, moment.phase, moment.steps_since_reset))
        states[moment.step, moment.phase] = {k: v.clone() for k, v in moment.model.state_dict().items()}

    final, _ = run(tiny_task, "dpo", RESET, folder=tmp_path, observe=observe)
    # resets are due at 3 and 6; the last step's is skipped, and only its one observation is left
    assert seen == [(2, None, 2), (3, "before", 3), (3, "after", 0), (4, None, 1), (6, None, 3)]
    assert not same(states[3, "before"], states[3, "after"])
    assert same(states[6, None], final)


def test_without_resets_there_is_no_count_of_them(tiny_task: Task, tmp_path: Path) -> None:
    seen: list[Moment] = []
    run(tiny_task, "dpo", folder=tmp_path, arguments={"max_steps": 3}, observe=seen.append)
    assert [(moment.step, moment.phase, moment.steps_since_reset) for moment in seen] == [
        (2, None, None),
        (3, None, None),
    ]


@pytest.mark.parametrize(("name", "kill_at"), [("dpo", 3), ("dpo", 5), ("kto", 5), ("rloo", 5)])
def test_resume_is_bit_identical(tiny_task: Task, tmp_path: Path, name: str, kill_at: int) -> None:
    """Killed in the middle of a cycle (reset at 3, checkpoints at 2 and 4), then started again."""
    options: dict[str, Any] = {"resume_dir": tmp_path / "resume", "checkpoint_every": 2, "log": tmp_path / "log.jsonl"}
    straight, _ = run(tiny_task, name, RESET, folder=tmp_path, log=tmp_path / "straight.jsonl")

    def kill(moment: Moment) -> None:
        if moment.step >= kill_at:
            raise KilledError

    with pytest.raises(KilledError):
        run(tiny_task, name, RESET, folder=tmp_path, observe=kill, **options)
    resumed, outcome = run(tiny_task, name, RESET, folder=tmp_path, **options)
    assert same(straight, resumed)
    assert outcome.steps == 6
    assert read_log(tmp_path / "log.jsonl") == read_log(tmp_path / "straight.jsonl")
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("dpo", ElasticReset(decay=0.6, reset_every=3, reference="average", moments="averaged")),
        ("dpo", ElasticReset(decay=0.6, reset_every=2, lengthen=1.5, snapshot="reference")),
        ("dpo", EMA(decay=0.6)),
        ("rloo", ElasticReset(decay=0.6, reset_every=3, kl_target=0.1, moments="cleared")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_what_methods_change_around_the_policy_survives_a_resume(
    tiny_task: Task, tmp_path: Path, name: str, method: Method
) -> None:
    """The reference's tensors, averaged moments and beta are of no checkpoint but ours."""
    options: dict[str, Any] = {"resume_dir": tmp_path / "resume", "checkpoint_every": 2}
    straight, _ = run(tiny_task, name, method, folder=tmp_path)

    def kill(moment: Moment) -> None:
        if moment.step >= 5:
            raise KilledError

    with pytest.raises(KilledError):
        run(tiny_task, name, method, folder=tmp_path, observe=kill, **options)
    resumed, _ = run(tiny_task, name, method, folder=tmp_path, **options)
    assert same(straight, resumed)
    plain, _ = run(tiny_task, name, folder=tmp_path)
    assert same(plain, straight) == isinstance(method, EMA)  # which never touches the policy


def test_what_is_measured_of_an_average_beside_the_policy_is_the_average(tiny_task: Task, tmp_path: Path) -> None:
    shown: dict[int, dict[str, Tensor]] = {}

    def observe(moment: Moment) -> None:
        assert moment.steps_since_reset is None
        shown[moment.step] = {name: tensor.clone() for name, tensor in trainable(moment.model).items()}

    trainer = make_trainer("dpo", {}, task=tiny_task, seed=0, output_dir=tmp_path)
    attached = join(trainer, [EMA(decay=0.6)])
    average = WeightAverage(trainer.model, decay=0.6)
    policies: list[dict[str, Tensor]] = []

    class Beside(TrainerCallback):
        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            average.update()
            policies.append({name: tensor.clone() for name, tensor in trainable(trainer.model).items()})

    trainer.add_callback(Beside())
    train(trainer, attached, every=2, observe=observe)
    assert list(shown) == [2, 4, 6]
    assert same(shown[6], average.tensors())
    assert same(trainable(trainer.model), policies[-1])
    with attached.shown():
        assert same(trainable(trainer.model), shown[6])
    assert same(trainable(trainer.model), policies[-1])
    with pytest.raises(Unsupported, match="two averages go along"):
        run(tiny_task, "dpo", EMA(decay=0.6), EMA(decay=0.7), folder=tmp_path)


def test_a_kl_is_told_once() -> None:
    """Two optimizer steps may learn from one generation, whose KL must move beta once."""
    trainer = SimpleNamespace(_metrics={"train": {"kl": []}})
    told = _kl_of(trainer)
    values: list[float] = trainer._metrics["train"]["kl"]
    assert told() is None
    values.append(0.5 + 0.25)
    assert [told(), told()] == [0.75, None]
    values += [float("2.0"), float("4.0")]  # two micro-batches of one step
    assert [told(), told()] == [3.0, None]
    values.append(0.5 + 0.5)
    assert [told(), told()] == [1.0, None]
    trainer._metrics["train"]["kl"] = [float("1.0") for _ in range(5)]  # emptied, and as many again
    assert [told(), told()] == [1.0, None]
    trainer._metrics["train"]["kl"] = [float("3.0"), float("5.0")]
    assert [told(), told()] == [4.0, None]
    trainer._metrics["train"].clear()
    assert told() is None


def test_a_kl_is_that_of_all_micro_batches_of_a_step() -> None:
    trainer = SimpleNamespace(_metrics={"train": {"kl": [1.0, 2.0, 6.0]}})
    told = _kl_of(trainer)
    assert told() == 3.0
    trainer._metrics["train"]["kl"] += [4.0, 6.0]
    assert told() == 5.0
    trainer._metrics["train"]["kl"] = [1.0, 1.0, 1.0, 1.0, 1.0, 7.0]  # emptied, and more than before
    assert [told(), told()] == [2.0, None]


@pytest.mark.filterwarnings("ignore:grpo with beta 0")
def test_a_kl_target_needs_a_beta_that_can_change(tiny_task: Task, tmp_path: Path) -> None:
    rule = ElasticReset(decay=0.6, reset_every=3, kl_target=0.1)
    with pytest.raises(Unsupported, match="elastic_reset: kl_target multiplies beta, and beta is 0; set beta above 0"):
        run(tiny_task, "grpo", rule, folder=tmp_path)
    with pytest.raises(Unsupported, match="elastic_reset: kl_target multiplies beta, and beta is 0"):
        check_reference_arguments("grpo", {}, [rule])
    check_reference_arguments("grpo", {"beta": 0.1}, [rule])
    check_reference_arguments("rloo", {}, [rule])


def test_a_reference_that_cannot_change_is_refused_before_the_first_step(tiny_task: Task, tmp_path: Path) -> None:
    rule = ElasticReset(decay=0.6, reset_every=3, reference="average")
    with pytest.raises(Unsupported, match="computed beforehand"):
        run(tiny_task, "dpo", rule, folder=tmp_path, arguments={"precompute_ref_log_probs": True})
    with pytest.raises(Unsupported, match="beta above 0"):
        run(tiny_task, "rloo", rule, folder=tmp_path, arguments={"beta": 0.0})


def test_resets_and_checkpoints_wait_until_no_samples_are_left(tiny_task: Task, tmp_path: Path) -> None:
    seen: list[tuple[int, str | None]] = []
    arguments = {
        "num_iterations": 2,
        "max_steps": 8,
    }  # every batch of samples is learned from twice: 2, 4, 6, 8 are free
    options: dict[str, Any] = {"resume_dir": tmp_path / "resume", "checkpoint_every": 3, "arguments": arguments}
    straight, _ = run(tiny_task, "rloo", RESET, folder=tmp_path, arguments=arguments)

    def kill(moment: Moment) -> None:
        seen.append((moment.step, moment.phase))
        if moment.step == 7 or (moment.step, moment.phase) == (8, None):
            raise KilledError

    with pytest.raises(KilledError):
        run(tiny_task, "rloo", RESET, folder=tmp_path, observe=kill, **options)
    assert seen == [(2, None), (4, "before"), (4, "after"), (6, None), (8, None)]  # due at 3, came at 4; next due at 7
    assert [path.name for path in (tmp_path / "resume").glob("checkpoint-*")] == ["checkpoint-4"]
    resumed, _ = run(tiny_task, "rloo", RESET, folder=tmp_path, **options)
    assert same(straight, resumed)


def test_a_checkpoint_that_was_being_written_is_not_read(tiny_task: Task, tmp_path: Path) -> None:
    resume = tmp_path / "resume"
    options: dict[str, Any] = {"resume_dir": resume, "checkpoint_every": 2}
    straight, _ = run(tiny_task, "dpo", RESET, folder=tmp_path, **options)
    (resume / "checkpoint-5").mkdir()
    (resume / "checkpoint-5" / "model.safetensors").write_bytes(b"half")
    resumed, _ = run(tiny_task, "dpo", RESET, folder=tmp_path, **options)
    assert same(straight, resumed)
    assert [path.name for path in resume.glob("checkpoint-*")] == ["checkpoint-4"]


def test_kl_changes_training_and_decay_0_does_not(tiny_task: Task, tmp_path: Path) -> None:
    from untaxed.objectives import KL

    plain, _ = run(tiny_task, "dpo", folder=tmp_path)
    tied, _ = run(tiny_task, "dpo", KL(beta=5.0), folder=tmp_path)
    followed, _ = run(tiny_task, "dpo", ElasticReset(decay=0.0, reset_every=2), folder=tmp_path)
    assert not same(plain, tied)
    assert same(plain, followed)


def test_micro_batches_add_up_to_the_same_step(tiny_task: Task, tmp_path: Path) -> None:
    whole, _ = run(tiny_task, "dpo", folder=tmp_path, arguments={"max_steps": 2})
    split, _ = run(tiny_task, "dpo", folder=tmp_path, arguments={"max_steps": 2, "micro_batch_size": 2})
    for name, tensor in whole.items():
        torch.testing.assert_close(split[name], tensor, rtol=0, atol=2e-3)  # lr 1e-3: Adam's first steps are sign-like
