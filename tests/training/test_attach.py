from __future__ import annotations

import re
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import DataCollatorForLanguageModeling, PrinterCallback, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer

from untaxed.callbacks import EMA, ElasticReset, ResetToInitial
from untaxed.checkpoints import load_model, load_tokenizer
from untaxed.errors import StoreError, Unsupported
from untaxed.merging import Averaging
from untaxed.method import Method
from untaxed.methods import EarlyStopping, Plain
from untaxed.objectives import KL
from untaxed.sites import Context, Site
from untaxed.training import Task, attach, host
from untaxed.weights import same, trainable

RESET = ElasticReset(decay=0.6, reset_every=3)
OPTIONS: dict[str, Any] = {
    "use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "max_steps": 5,
    "learning_rate": 1e-3, "per_device_train_batch_size": 4, "activation_checkpointing": False,
    "dataloader_pin_memory": False,
}  # fmt: skip


def dpo(
    task: Task, folder: Path, *, dtype: torch.dtype = torch.float32, lora: bool = False, **options: Any
) -> DPOTrainer:
    """A trainer as anybody builds one."""
    trainer = DPOTrainer(
        load_model(task.initial, dtype=dtype),
        None if lora else load_model(task.initial, dtype=dtype),
        args=DPOConfig(str(folder), **{**OPTIONS, **options}),
        train_dataset=Dataset.from_list(list(task.preferences)),
        processing_class=load_tokenizer(task.initial),
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"]) if lora else None,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def final(trainer: Trainer) -> dict[str, torch.Tensor]:
    trainer.train()
    return {name: tensor.clone() for name, tensor in trainable(trainer.model).items()}


def test_a_method_acts_in_a_trainer_that_somebody_built(tiny_task: Task, tmp_path: Path) -> None:
    plain = final(dpo(tiny_task, tmp_path))
    trainer = dpo(tiny_task, tmp_path)
    objects = list(trainer.model.parameters())
    attached = attach(trainer, RESET)
    ours = final(trainer)
    assert not same(plain, ours)
    assert attached.steps_since_reset == 2
    assert all(a is b for a, b in zip(objects, trainer.model.parameters(), strict=True))


def test_detach_takes_it_off(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path)
    attach(trainer, RESET).detach()
    assert same(final(trainer), final(dpo(tiny_task, tmp_path)))


def test_twice_is_once_with_both(tiny_task: Task, tmp_path: Path) -> None:
    second = EMA(decay=0.9)
    once, twice = dpo(tiny_task, tmp_path), dpo(tiny_task, tmp_path)
    attach(once, RESET, second)
    attached = attach(twice, RESET)
    assert attach(twice, second) is attached
    assert attached.methods == (RESET, second)
    assert same(final(once), final(twice))


@pytest.mark.parametrize("second", [ElasticReset(decay=0.9, reset_every=2), ResetToInitial(reset_every=2)])
def test_two_that_replace_the_policy_are_refused(tiny_task: Task, tmp_path: Path, second: Method) -> None:
    trainer = dpo(tiny_task, tmp_path)
    message = f"elastic_reset and {second.name} both replace the policy and would undo each other's work; keep one"
    with pytest.raises(Unsupported, match=message):
        attach(trainer, RESET, second)
    attach(trainer, RESET)
    with pytest.raises(Unsupported, match=message):
        attach(trainer, second)


def test_any_transformers_trainer_will_do(tiny_task: Task, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_task.initial)
    trainer = Trainer(
        load_model(tiny_task.initial),
        TrainingArguments(str(tmp_path), **{**OPTIONS, "max_steps": 4}),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        train_dataset=[tokenizer(prompt) for prompt in tiny_task.prompts],
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    initial = {name: tensor.clone() for name, tensor in trainable(trainer.model).items()}
    attached = attach(trainer, ElasticReset(decay=1.0, reset_every=3))
    seen = []
    attached.observer = lambda step, *, last, phase: seen.append((step, phase, same(trainable(trainer.model), initial)))
    trainer.train()
    assert seen == [(1, None, False), (2, None, False), (3, "before", False), (3, "after", True), (4, None, False)]


def test_lora_resets_the_adapters_and_nothing_else(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path, lora=True)
    attached = attach(trainer, ElasticReset(decay=1.0, reset_every=2))
    initial = {name: tensor.clone() for name, tensor in trainable(trainer.model).items()}
    states = []
    attached.observer = lambda step, *, last, phase: states.append((phase, same(trainable(trainer.model), initial)))
    trainer.train()
    assert states.count(("after", True)) == 2
    assert all("lora" in name for name in attached.state_dict()["states"][0]["average"])
    assert attached.describe()["trainable_parameters"] == 2 * 2 * 2 * 2 * 32  # layers, matrices, A and B, rank, width


def test_resume_through_the_trainers_own_checkpoints(tiny_task: Task, tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 8}
    straight = dpo(tiny_task, tmp_path / "a", **options)
    attach(straight, RESET)
    expected = final(straight)
    assert (tmp_path / "a" / "checkpoint-4" / "untaxed" / "rank-0-of-1.safetensors").is_file()

    again = dpo(tiny_task, tmp_path / "a", **options)
    attach(again, RESET)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert same(trainable(again.model), expected)

    elsewhere = dpo(tiny_task, tmp_path / "b", **options)
    attach(elsewhere, RESET)
    with pytest.raises(StoreError, match=r"checkpoint-4/untaxed/rank-0-of-1\.safetensors is missing"):
        elsewhere.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    elsewhere = dpo(tiny_task, tmp_path / "b", **options)
    attach(elsewhere, RESET).load_checkpoint(tmp_path / "a" / "checkpoint-4")
    elsewhere.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert same(trainable(elsewhere.model), expected)

    wrong = dpo(tiny_task, tmp_path / "b", **options)
    attach(wrong, RESET).load_checkpoint(tmp_path / "a" / "checkpoint-2")
    with pytest.raises(StoreError, match="belongs to other weights than the policy's"):
        wrong.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))

    other = attach(dpo(tiny_task, tmp_path / "b", **options), ElasticReset(decay=0.7, reset_every=3))
    with pytest.raises(StoreError, match=r"belongs to the methods .*'decay': 0\.6.* attached are .*'decay': 0\.7"):
        other.load_checkpoint(tmp_path / "a" / "checkpoint-4")


def test_state_dict_goes_into_a_running_attachment(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path, max_steps=4)
    attached = attach(trainer, RESET)
    trainer.train()
    state = attached.state_dict()
    assert state["steps_since_reset"] == 1
    state = {**state, "steps_since_reset": 2}
    attached.load_state_dict(state)
    assert attached.steps_since_reset == 2


def test_describe_is_plain(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path)
    described = attach(trainer, KL(beta=0.1), RESET).describe()
    assert described == {
        "trainer": "DPOTrainer",
        "backend": "plain",
        "methods": [
            {"name": "kl", "beta": 0.1},
            {"name": "elastic_reset", "decay": 0.6, "reset_every": 3, "update_every": 1},
        ],
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters()),
    }


@dataclass(frozen=True)
class Replay(Method):
    """A method at a site that attach does not offer."""

    name: ClassVar[str] = "replay"
    acts: ClassVar[frozenset[Site]] = frozenset({"data", "between"})


def stand_in(**state: Any) -> Any:
    """A trainer of another backend, as far as `attach` looks at one."""
    base: dict[str, Any] = {
        "state": types.SimpleNamespace(global_step=0),
        "is_in_train": False,
        "is_deepspeed_enabled": False,
        "is_fsdp_enabled": False,
        "accelerator": types.SimpleNamespace(is_fsdp2=False),
        "args": types.SimpleNamespace(world_size=1, max_steps=10, beta=0.1),
        "model": torch.nn.Linear(2, 2),
        "callback_handler": types.SimpleNamespace(callbacks=[]),
        "add_callback": lambda hook: None,
    }
    return types.SimpleNamespace(**{**base, **state})


@pytest.mark.parametrize(
    ("state", "method", "message"),
    [
        ({}, Averaging(initial_share=0.2), "averaging acts after training: use its function on the saved weights"),
        ({}, Replay(), "replay acts at data, which attach does not offer"),
        ({}, KL(beta=0.1), "kl needs an algorithm with a beta .* got simplenamespace"),
        ({"is_deepspeed_enabled": True}, RESET, "elastic_reset cannot act under deepspeed.* use FSDP2, or"),
        ({"is_fsdp_enabled": True}, RESET, "elastic_reset cannot act under fsdp1"),
        ({"is_distributed_loading_by_transformers": True}, RESET, "elastic_reset cannot act under sharded_at_load"),
        ({}, Plain(), "plain changes nothing in training; leave it out here"),
        ({}, EarlyStopping(), "early_stopping changes nothing in training; leave it out here"),
        ({}, "elastic_reset", r"attach takes methods with their settings, such as .* got 'elastic_reset'"),
        ({}, ElasticReset, r"attach takes methods with their settings, such as .* got <class"),
        ({"model": torch.nn.Linear(2, 2).requires_grad_(False)}, RESET, "would do nothing: .* no trainable parameter"),
        ({"is_in_train": True}, RESET, "attach comes before train"),
        ({"state": types.SimpleNamespace(global_step=3)}, RESET, "attach comes before train"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(state: dict[str, Any], method: Any, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        attach(stand_in(**state), method)


def test_a_method_that_is_an_argument_must_have_been_given_as_one(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path, beta=0.3)
    attach(trainer, KL(beta=0.3))
    with pytest.raises(Unsupported, match=r"argument of the algorithm itself: build the trainer with beta=0\.5"):
        attach(trainer, KL(beta=0.5))


def test_methods_learn_what_they_join(tiny_task: Task, tmp_path: Path) -> None:
    seen: list[Context] = []

    class Asks(KL):
        def check(self, context: Context) -> None:
            seen.append(context)

    attach(dpo(tiny_task, tmp_path, lora=True), Asks(beta=0.1))
    assert seen == [Context("dpo", 5, backend="plain", lora=True)]


def test_somebodys_own_trainer_is_known_by_what_it_is_made_of(tiny_task: Task, tmp_path: Path) -> None:
    class MyDPO(DPOTrainer):
        pass

    trainer = dpo(tiny_task, tmp_path)
    trainer.__class__ = MyDPO
    assert host._context(trainer).algorithm == "dpo"
    with pytest.raises(Unsupported, match="this is dpo"):
        attach(trainer, ElasticReset(decay=0.6, reset_every=3, kl_target=0.1))


def test_bfloat16_weights_without_a_master_are_warned_about(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match=r"the trainable weights are torch\.bfloat16 without a float32 master"):
        attach(trainer, RESET)


@pytest.mark.parametrize("trainer", [object(), torch.nn.Linear(1, 1), Trainer, None])
def test_what_is_no_trainer_is_refused(trainer: Any) -> None:
    with pytest.raises(Unsupported, match="attach joins methods to a built Trainer of transformers or TRL, got"):
        attach(trainer, RESET)


def test_a_method_acts_once(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path)
    with pytest.raises(Unsupported, match=r"elastic_reset with these settings is attached already and would act"):
        attach(trainer, RESET, RESET)
    attached = attach(trainer, RESET)
    with pytest.raises(Unsupported, match="attached already"):
        attach(trainer, RESET)
    assert attached.methods == (RESET,)


def test_off_is_off(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path)
    attached = attach(trainer, RESET)
    attached.detach()
    with pytest.raises(Unsupported, match="these methods are detached already"):
        attached.detach()
    assert attach(trainer, RESET) is not attached


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "'methods' is missing; 'steps_since_reset' is missing; 'policy' is missing; 'states' is missing"),
        (None, "it is NoneType, no mapping"),
        ({"steps_since_reset": None}, "'steps_since_reset' must be a whole number from 0 on, got None"),
        ({"states": {}}, "'states' must be a list, got {}"),
        ({"states": []}, "holds the states of 0 methods, 1 act here; give one that was saved after training began"),
        ({"states": [{}]}, "no state of ElasticResetState: 'average' is missing"),
    ],
)
def test_a_malformed_state_is_refused(
    tiny_task: Task, tmp_path: Path, change: dict[str, Any] | None, message: str
) -> None:
    trainer = dpo(tiny_task, tmp_path, max_steps=4)
    attached = attach(trainer, RESET)
    trainer.train()
    state = {**attached.state_dict(), **change} if change else change
    with pytest.raises(StoreError, match=re.escape(message)):
        attached.load_state_dict(state)  # type: ignore[arg-type]
    assert attached.steps_since_reset == 1


def test_what_was_changed_after_attach_is_checked_when_training_begins(tiny_task: Task, tmp_path: Path) -> None:
    shorter = dpo(tiny_task, tmp_path)
    attach(shorter, RESET)
    shorter.args.max_steps = 3
    with pytest.raises(Unsupported, match="would never reset: reset_every is 3, training has 3 steps"):
        shorter.train()

    by_epochs = dpo(tiny_task, tmp_path, max_steps=-1, num_train_epochs=1)  # 24 pairs, 4 a step
    attach(by_epochs, ElasticReset(decay=0.6, reset_every=6))
    with pytest.raises(Unsupported, match="would never reset: reset_every is 6, training has 6 steps"):
        by_epochs.train()

    replaced = dpo(tiny_task, tmp_path)
    attach(replaced, RESET)
    replaced.model = load_model(tiny_task.initial)
    with pytest.raises(Unsupported, match=r"trainer\.model was replaced after the trainer was built"):
        replaced.train()

    frozen = dpo(tiny_task, tmp_path)
    attach(frozen, RESET)
    frozen.model.requires_grad_(False)
    with pytest.raises(Unsupported, match=r"elastic_reset would do nothing: .* no trainable parameter"):
        frozen.train()


def test_without_methods_it_would_do_nothing(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path)
    with pytest.raises(Unsupported, match="attach got no method and would do nothing; give one: attach"):
        attach(trainer)
    attach(trainer, RESET)
    with pytest.raises(Unsupported, match="attach got no method"):
        attach(trainer)


def test_what_was_trained_already_is_not_taken_for_the_initial_model(tiny_task: Task, tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    trainer = dpo(tiny_task, tmp_path, **options)
    attached = attach(trainer, RESET)
    once = final(trainer)
    with pytest.raises(
        Unsupported, match=r"train\(\) was called again .* go on with train\(resume_from_checkpoint=…\)"
    ):
        trainer.train()
    assert same(dict(trainable(trainer.model)), once)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(dict(trainable(trainer.model)), once)
    attached.detach()
    trainer.train()  # nothing of ours counts on the initial model any more

    stopped = dpo(tiny_task, tmp_path / "b", max_steps=4)
    attach(stopped, RESET)
    stopped.args.max_steps = 3
    with pytest.raises(Unsupported, match="would never reset"):
        stopped.train()
    stopped.args.max_steps = 4
    stopped.train()  # no step was taken before
