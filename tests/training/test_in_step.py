"""Methods that act in the optimizer's step, in every trainer, around any optimizer, through a resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from test_attach import OPTIONS, dpo, final
from test_laws import KilledError, run
from tiny import build_model_dir
from transformers import DataCollatorForLanguageModeling, PrinterCallback, Trainer, TrainingArguments
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from untaxed import optim
from untaxed.callbacks import ElasticReset
from untaxed.checkpoints import load_model, load_tokenizer
from untaxed.errors import Unsupported
from untaxed.method import Method
from untaxed.optim import (
    ChildTuning,
    MoFO,
    OnDARE,
    OnDAREAdamW,
    OnlineMerging,
    OnTIES,
    Pipeline,
    UpdateDropout,
    sft_delta,
)
from untaxed.training import Task, attach, with_inputs
from untaxed.weights import same, trainable

MERGE: dict[str, Any] = {"density": 0.3, "merge_weight": 0.01}
ROWS: list[Method] = [
    OnDARE(**MERGE),
    OnDARE(**MERGE, merge_every=4),  # a tail of two
    OnTIES(**MERGE),
    OnlineMerging(**MERGE, pull="anchor", anchor_at=0.5),
    UpdateDropout(density=0.3),
    MoFO(density=0.3),
    ChildTuning(density=0.3),
]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same shapes: what initial would have been tuned from."""
    return build_model_dir(tmp_path_factory.mktemp("pretrained"), seed=1)


@pytest.fixture
def task(tiny_task: Task, pretrained: Path) -> Task:
    return dataclasses.replace(tiny_task, pretrained=pretrained)


def ready(task: Task, *methods: Method) -> list[Method]:
    return with_inputs(methods, task)


def label(method: Method) -> str:
    return f"{method.name}-{'-'.join(map(str, method.settings().values()))}"


@pytest.mark.parametrize("method", ROWS, ids=label)
def test_each_acts_in_a_trainer_that_somebody_built(task: Task, tmp_path: Path, method: Method) -> None:
    plain = final(dpo(task, tmp_path))
    trainer = dpo(task, tmp_path)
    attach(trainer, *ready(task, method))
    ours = final(trainer)
    assert not same(plain, ours)
    assert all(torch.isfinite(tensor).all() for tensor in ours.values())


@pytest.mark.parametrize("name", ["dpo", "kto", "rloo", "grpo"])
@pytest.mark.filterwarnings("ignore:grpo with beta 0")
def test_every_algorithm_hosts_them(task: Task, tmp_path: Path, name: str) -> None:
    plain, _ = run(task, name, folder=tmp_path, arguments={"max_steps": 3})
    merged, _ = run(task, name, *ready(task, OnDARE(**MERGE)), folder=tmp_path, arguments={"max_steps": 3})
    assert not same(plain, merged)


@pytest.mark.parametrize("kind", ["sft", "reward", "plain"])
def test_other_trainers_host_them(task: Task, tmp_path: Path, kind: str) -> None:
    tokenizer, options = load_tokenizer(task.initial), {**OPTIONS, "max_steps": 3}
    model = load_model(task.initial)
    rows = Dataset.from_list([{"text": f"{row['prompt']}{row['chosen']}"} for row in task.preferences])
    if kind == "sft":
        trainer: Any = SFTTrainer(
            model, SFTConfig(str(tmp_path), **options), train_dataset=rows, processing_class=tokenizer
        )
    elif kind == "reward":
        from transformers import AutoModelForSequenceClassification

        head = AutoModelForSequenceClassification.from_pretrained(task.initial, num_labels=1, dtype=torch.float32)
        pairs = Dataset.from_list(list(task.preferences))
        trainer = RewardTrainer(
            head, RewardConfig(str(tmp_path), **options), train_dataset=pairs, processing_class=tokenizer
        )
    else:
        collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        texts = [tokenizer(prompt) for prompt in task.prompts]
        trainer = Trainer(
            model, TrainingArguments(str(tmp_path), **options), collate, texts, processing_class=tokenizer
        )
    trainer.remove_callback(PrinterCallback)
    before = {name: tensor.clone() for name, tensor in trainable(trainer.model).items()}
    delta = {name: torch.ones_like(tensor) for name, tensor in before.items()}
    attach(trainer, OnDARE(density=1.0, merge_weight=0.01, delta=delta))
    trainer.train()
    after = trainable(trainer.model)
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_an_optimizer_that_was_given_is_wrapped_and_keeps_its_groups(task: Task, tmp_path: Path) -> None:
    trainer = dpo(task, tmp_path)
    given = torch.optim.SGD(trainer.model.parameters(), lr=0.1, momentum=0.9)
    trainer.optimizer = given
    attached = attach(trainer, MoFO(density=0.2))
    before = {name: tensor.clone() for name, tensor in trainable(trainer.model).items()}
    seen: list[float] = []

    def watch(step: int, *, last: bool, phase: str | None) -> None:
        moved = sum(int((tensor != before[name]).sum()) for name, tensor in trainable(trainer.model).items())
        seen.append(moved / sum(tensor.numel() for tensor in before.values()))

    attached.observer = watch
    trainer.train()
    assert isinstance(attached.in_step.optimizer, Pipeline)
    assert attached.in_step.optimizer.base is given
    assert 0.1 < seen[0] <= 0.21


def test_the_trainers_own_adamw_becomes_merged_adamw_with_its_decay_groups(task: Task, tmp_path: Path) -> None:
    trainer = dpo(task, tmp_path, weight_decay=0.25, adam_beta2=0.95)
    attached = attach(trainer, *ready(task, OnDARE(**MERGE)))
    trainer.train()
    optimizer = attached.in_step.optimizer
    assert isinstance(optimizer, OnDAREAdamW)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.0]
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}
    assert all("norm" in name for name in optimizer.param_groups[1]["param_names"])


@pytest.mark.parametrize("method", ROWS[:2], ids=label)
def test_the_fast_path_and_the_general_one_agree(
    task: Task, tmp_path: Path, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for rounding, which Adam's first steps blow up where a gradient is next to nothing."""
    fast, general = dpo(task, tmp_path), dpo(task, tmp_path)
    attach(fast, *ready(task, method))
    weights = final(fast)
    monkeypatch.setattr("untaxed.training.in_step._is_plain_adamw", lambda base: False)
    attached = attach(general, *ready(task, method))
    others = final(general)
    assert isinstance(attached.in_step.optimizer, Pipeline)
    close = [((weights[name] - others[name]).abs() < 1e-5).float().mean() for name in weights]
    assert min(close) > 0.97


@pytest.mark.parametrize("method", ROWS, ids=label)
@pytest.mark.parametrize("general", [False, True])
def test_resume_is_bit_identical(
    task: Task, tmp_path: Path, method: Method, general: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of a merging cycle, with a reset in the same arm."""
    if general:
        monkeypatch.setattr("untaxed.training.in_step._is_plain_adamw", lambda base: False)
    methods = [*ready(task, method), ElasticReset(decay=0.6, reset_every=3)]
    options: dict[str, Any] = {"resume_dir": tmp_path / "resume", "checkpoint_every": 2}
    straight, _ = run(task, "dpo", *methods, folder=tmp_path)

    def kill(moment: Any) -> None:
        if moment.step >= 3:
            raise KilledError

    with pytest.raises(KilledError):
        run(task, "dpo", *methods, folder=tmp_path, observe=kill, **options)
    resumed, _ = run(task, "dpo", *methods, folder=tmp_path, **options)
    assert same(straight, resumed)


def test_autocast_training_merges_into_float32_weights(task: Task, tmp_path: Path) -> None:
    trainer = dpo(task, tmp_path, bf16=True)
    attached = attach(trainer, *ready(task, OnDARE(**MERGE)))
    weights = final(trainer)
    state = attached.in_step.optimizer.state
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert {each["exp_avg"].dtype for each in state.values()} == {torch.float32}
    assert not same(weights, final(dpo(task, tmp_path, bf16=True)))


def test_detach_gives_the_trainer_its_own_optimizer_back(task: Task, tmp_path: Path) -> None:
    trainer = dpo(task, tmp_path)
    attach(trainer, *ready(task, OnDARE(**MERGE))).detach()
    assert same(final(trainer), final(dpo(task, tmp_path)))


def test_twice_is_once_with_both(task: Task, tmp_path: Path) -> None:
    first, second = ready(task, ChildTuning(density=0.5), OnDARE(**MERGE))
    once, twice = dpo(task, tmp_path), dpo(task, tmp_path)
    attach(once, first, second)
    attach(twice, first)
    attach(twice, second)
    assert same(final(once), final(twice))


def test_what_cannot_work_is_refused_with_the_way_out(task: Task, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"ondare needs the SFT delta: pass delta=sft_delta\(initial, pretrained\)"):
        attach(dpo(task, tmp_path), OnDARE(**MERGE))
    with pytest.raises(Unsupported, match=r"only an adapter is trained.* give the delta between two adapters"):
        attach(dpo(task, tmp_path, lora=True), *ready(task, OnDARE(**MERGE)))
    with pytest.raises(Unsupported, match="would never merge: merge_every is 9, training has 5 steps"):
        attach(dpo(task, tmp_path), *ready(task, OnDARE(**MERGE, merge_every=9)))
    trainer = dpo(task, tmp_path)
    stranger = torch.nn.Parameter(torch.ones(3))
    trainer.optimizer = torch.optim.SGD([stranger], lr=0.1)
    attach(trainer, MoFO(density=0.2))
    with pytest.raises(Unsupported, match="parameters that are not the model's"):
        trainer.train()


def test_a_delta_of_another_model_is_refused_before_the_first_step(task: Task, tmp_path: Path) -> None:
    trainer = dpo(task, tmp_path)
    attach(trainer, OnDARE(**MERGE, delta={"model.norm.weight": torch.ones(32)}))
    with pytest.raises(ValueError, match=r"embed_tokens\.weight"):
        trainer.train()


def test_an_adapters_delta_serves_an_adapters_training(task: Task, tmp_path: Path) -> None:
    trainer = dpo(task, tmp_path, lora=True)
    before = {name: tensor.clone() for name, tensor in trainable(trainer.model).items()}
    delta = {name: torch.ones_like(tensor) for name, tensor in before.items()}
    attach(trainer, OnDARE(density=1.0, merge_weight=0.01, delta=delta))
    trainer.train()
    assert all(not torch.equal(before[name], tensor) for name, tensor in trainable(trainer.model).items())


def test_weight_of_merging_pushes_along_the_delta(task: Task, tmp_path: Path) -> None:
    """Closed form: 5 steps at density 1 and next to no rate: 5 pushes of w times delta."""
    delta = sft_delta(load_model(task.initial), load_model(task.pretrained))
    ends = []
    for weight in (0.0, 1e-3):
        trainer = dpo(task, tmp_path, lr_scheduler_type="constant", learning_rate=1e-9)
        attach(trainer, OnDARE(density=1.0, merge_weight=weight, delta=delta))
        ends.append(final(trainer))
    for name in ends[0]:
        pushed = ends[1][name] - ends[0][name]
        expected = 5e-3 * delta.dense(name).view(pushed.shape)
        torch.testing.assert_close(pushed, expected, rtol=0, atol=2e-7)


def test_every_row_of_the_room_is_in_the_table() -> None:
    from untaxed.methods import METHODS

    rows = {
        value.name
        for value in vars(optim).values()
        if isinstance(value, type) and issubclass(value, Method) and hasattr(value, "name")
    }
    assert rows <= set(METHODS)


def test_a_trainer_that_goes_on_from_its_checkpoint_steps_through_the_methods_once(task: Task, tmp_path: Path) -> None:
    trainer = dpo(task, tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    attach(trainer, *ready(task, OnDARE(**MERGE)))
    once = final(trainer)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(trainable(trainer.model), once)


def test_a_reset_inside_a_merging_window_is_not_undone(task: Task, tmp_path: Path) -> None:
    """Most of what is proposed after the reset at step 6 is dropped by the merge at step 8: the rest is initial."""
    trainer = dpo(task, tmp_path, max_steps=8)
    start = {name: tensor.clone() for name, tensor in trainable(trainer.model).items()}
    attach(trainer, OnDARE(density=0.3, merge_weight=0.0, merge_every=4), ElasticReset(decay=1.0, reset_every=6))
    merged = final(trainer)
    equal = torch.cat([torch.isclose(merged[name], start[name], rtol=0, atol=1e-7).flatten() for name in start])
    assert equal.float().mean() > 0.6  # 0.49 where the window began elsewhere
