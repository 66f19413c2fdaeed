"""Methods that change the reference, in TRL's own trainers: whole models and adapters, resume, what is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny import reward
from torch import Tensor
from transformers import PrinterCallback, Trainer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer, RLOOConfig, RLOOTrainer

from untaxed.callbacks import BEMA, ElasticReset, SyncReference, WARPAnchor
from untaxed.checkpoints import load_model, load_tokenizer
from untaxed.errors import SpecError, Unsupported
from untaxed.method import Method
from untaxed.together import check_together
from untaxed.training import Task, attach
from untaxed.training.reference import reference_tensors
from untaxed.weights import same, trainable

OPTIONS: dict[str, Any] = {
    "use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "max_steps": 5,
    "learning_rate": 1e-2, "per_device_train_batch_size": 4, "activation_checkpointing": False,
    "dataloader_pin_memory": False, "logging_steps": 1, "warmup_steps": 0,
}  # fmt: skip
SAMPLES: dict[str, Any] = {"num_generations": 2, "max_completion_length": 4, "beta": 0.5}
SYNC = SyncReference(share=1.0, sync_every=2)
ADAPTER = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": True}


def build(name: str, task: Task, folder: Path, *, lora: dict[str, Any] | None = None, **options: Any) -> Any:
    """TRL's trainer as anybody builds one; `lora`: with an adapter."""
    model, tokenizer = load_model(task.initial), load_tokenizer(task.initial)
    adapter = None if lora is None else LoraConfig(**{**ADAPTER, **lora})
    rest: dict[str, Any] = {"processing_class": tokenizer, "peft_config": adapter}
    prompts = Dataset.from_list([{"prompt": prompt} for prompt in task.prompts])
    if name in ("dpo", "kto"):
        kind, config = (DPOTrainer, DPOConfig) if name == "dpo" else (KTOTrainer, KTOConfig)
        args = config(str(folder), **{**OPTIONS, "beta": 0.5, **options})
        pairs = Dataset.from_list(list(task.preferences))
        trainer = kind(
            model, None if lora is not None else load_model(task.initial), args=args, train_dataset=pairs, **rest
        )
    else:
        kind, config = (RLOOTrainer, RLOOConfig) if name == "rloo" else (GRPOTrainer, GRPOConfig)
        args = config(str(folder), **{**OPTIONS, **SAMPLES, **options})

        def judge(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
            return reward(prompts, completions)

        trainer = kind(model, judge, args=args, train_dataset=prompts, **rest)
    trainer.remove_callback(PrinterCallback)
    return trainer


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainable(trainer.model).items()}


def theirs(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in reference_tensors(trainer).items()}


def watched(
    trainer: Trainer, *methods: Method
) -> tuple[dict[int, dict[str, Tensor]], dict[int, dict[str, Tensor]], Any]:
    """Trains; the policy at each step, and the reference before each step's methods act."""
    attached = attach(trainer, *methods)
    policies, references = {}, {}

    def observe(step: int, *, last: bool, phase: str | None) -> None:
        assert phase is None  # the policy is never replaced
        policies[step], references[step] = weights(trainer), theirs(trainer)

    attached.observer = observe
    trainer.train()
    references[trainer.state.global_step + 1] = theirs(trainer)
    return policies, references, attached


@pytest.mark.parametrize("lora", [None, {}])
@pytest.mark.parametrize("name", ["dpo", "kto", "rloo", "grpo"])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_reference_becomes_the_policy_and_training_feels_it(
    tiny_task: Task, tmp_path: Path, name: str, lora: dict[str, Any] | None
) -> None:
    plain = build(name, tiny_task, tmp_path, lora=lora)
    start = weights(plain)
    plain.train()
    trainer = build(name, tiny_task, tmp_path, lora=lora)
    policies, references, attached = watched(trainer, SYNC)
    for step, expected in ((1, start), (2, start), (3, policies[2]), (4, policies[2]), (5, policies[4])):
        assert same(
            {part.replace(".ref.", ".default."): tensor for part, tensor in references[step].items()}, expected
        ), step
    assert same(references[6], references[5])
    assert attached.steps_since_reset == 5
    assert attached.state_dict()["states"][0]["syncs"] == 2
    # up to the first sync the two runs are one; after it the loss is held against another reference
    first, second = ([line for line in each.state.log_history if "loss" in line] for each in (plain, trainer))
    assert [line["loss"] for line in first[:2]] == [line["loss"] for line in second[:2]]
    assert first[2]["loss"] != second[2]["loss"] or name in ("rloo", "grpo")
    if name in ("rloo", "grpo"):
        assert abs(first[2]["kl"]) > 1e-4
        assert abs(second[2]["kl"]) < 1e-6  # just synced: reference and policy are one
    elif name == "dpo":
        assert second[2]["rewards/margins"] == pytest.approx(0, abs=1e-6)
        assert abs(first[2]["rewards/margins"]) > 1e-4
    assert not same(weights(plain), weights(trainer))


@pytest.mark.parametrize(
    "lora", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}, {"modules_to_save": ["lm_head"]}]
)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapters_reference_is_a_second_adapter(tiny_task: Task, tmp_path: Path, lora: dict[str, Any]) -> None:
    trainer = build("dpo", tiny_task, tmp_path, lora=lora)
    start, states = weights(trainer), []
    attached = attach(trainer, WARPAnchor(mu=0.3))
    whole = {name: tensor.clone() for name, tensor in trainer.model.named_parameters()}
    assert list(trainer.model.peft_config) == ["default"]  # nothing before training begins
    attached.observer = lambda step, *, last, phase: states.append(theirs(trainer))
    trainer.train()
    assert list(trainer.model.peft_config) == ["default", "ref"]
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), start.values(), strict=True))
    assert set(weights(trainer)) == set(start)  # what trains is what trained
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        if "ref" in name.split("."):
            assert not parameter.requires_grad
            assert parameter.grad is None
            assert id(parameter) not in held
        elif name not in start:
            assert torch.equal(parameter, whole[name]), name  # the base model stays


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_second_adapter_uses_no_random_numbers(tiny_task: Task, tmp_path: Path) -> None:
    """Share 0 leaves training as it is, dropout of the adapter included."""
    finals = []
    for methods in ((), (SyncReference(share=0.0, sync_every=1),)):
        trainer = build("dpo", tiny_task, tmp_path, lora={"lora_dropout": 0.5}, disable_dropout=False)
        if methods:
            attach(trainer, *methods)
        trainer.train()
        finals.append(weights(trainer))
    assert same(*finals)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_adapter_that_trl_made_is_taken(tiny_task: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = get_peft_model(load_model(tiny_task.initial), LoraConfig(**{**ADAPTER, "init_lora_weights": False}))
    trainer = DPOTrainer(
        model,
        args=DPOConfig(str(tmp_path), **OPTIONS),
        train_dataset=Dataset.from_list(list(tiny_task.preferences)),
        processing_class=load_tokenizer(tiny_task.initial),
    )
    trainer.remove_callback(PrinterCallback)
    start = weights(trainer)
    policies, references, _ = watched(trainer, SYNC)
    assert all(torch.equal(a, b) for a, b in zip(references[2].values(), start.values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(references[3].values(), policies[2].values(), strict=True))


@pytest.mark.parametrize("stop", [2, 3, 4])
@pytest.mark.parametrize("lora", [None, {}])
@pytest.mark.parametrize(
    "method",
    [SyncReference(share=0.6, sync_every=3), WARPAnchor(mu=0.2), BEMA(update_every=2, lag=1, into="reference")],
)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_resume_is_bit_identical(
    tiny_task: Task, tmp_path: Path, method: Method, lora: dict[str, Any] | None, stop: int
) -> None:
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 6}
    straight = build("dpo", tiny_task, tmp_path, lora=lora, **options)
    attached = attach(straight, method)
    straight.train()
    again = build("dpo", tiny_task, tmp_path, lora=lora, **options)
    resumed = attach(again, method)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert same(weights(again), weights(straight))
    assert same(theirs(again), theirs(straight))
    for key, value in attached.state_dict()["states"][0].items():
        other = resumed.state_dict()["states"][0][key]
        assert same(value, other) if isinstance(value, dict) else value == other


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_syncs_wait_until_no_samples_are_left_and_say_so_once(
    tiny_task: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build("rloo", tiny_task, tmp_path, num_iterations=2, max_steps=8)
    with caplog.at_level(logging.WARNING, logger="untaxed"):
        _, references, _ = watched(trainer, SyncReference(share=1.0, sync_every=3))
    changed = [step for step in range(1, 9) if not same(references[step], references[step + 1])]
    assert changed == [4]  # due at 3, came at 4; next due at 7, and at 8 training is over
    said = [record.getMessage() for record in caplog.records if record.name.startswith("untaxed")]
    assert said == [
        "sync_reference is due at step 3, where samples of the policy wait to be learned from: it comes at the next "
        "step where none do, here and later on"
    ]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_bema_leaves_training_alone_or_writes_the_reference(tiny_task: Task, tmp_path: Path) -> None:
    plain = build("dpo", tiny_task, tmp_path)
    plain.train()
    beside = build("dpo", tiny_task, tmp_path)
    policies, _, attached = watched(beside, BEMA(update_every=1, lag=0, average_power=0.0))
    assert same(weights(plain), weights(beside))
    variant = attached._live[0].variant()
    initial, last = trainable(load_model(tiny_task.initial)), policies[5]
    for name, tensor in variant.items():  # kappa 0: the average is the policy, so theta + alpha (theta - theta_0)
        torch.testing.assert_close(tensor, last[name] + 6**-0.2 * (last[name] - initial[name]), rtol=1e-5, atol=1e-6)

    into = build("dpo", tiny_task, tmp_path)
    _, references, _ = watched(into, BEMA(update_every=2, lag=0, into="reference"))
    assert [step for step in range(1, 6) if not same(references[step], references[step + 1])] == [2, 4]
    assert not same(weights(plain), weights(into))


@pytest.mark.parametrize(
    ("name", "lora", "options", "method", "message"),
    [
        (
            "dpo",
            None,
            {"precompute_ref_log_probs": True},
            SYNC,
            "computed beforehand.*; set precompute_ref_log_probs to",
        ),
        (
            "dpo",
            None,
            {"sync_ref_model": True},
            SYNC,
            "with sync_ref_model TRL moves it as well; set sync_ref_model to f",
        ),
        ("grpo", None, {"beta": 0.0}, SYNC, "with beta 0 there is none; set beta above 0"),
        ("rloo", {}, {"beta": 0.0}, WARPAnchor(), "warp_anchor works on the reference, and with beta 0 there is none"),
        (
            "grpo",
            None,
            {"beta": 0.0},
            BEMA(update_every=1, into="reference"),
            "bema works on the reference, and with beta",
        ),
    ],
)
def test_a_reference_that_cannot_change_is_refused_before_any_step(
    tiny_task: Task, tmp_path: Path, name: str, lora: Any, options: dict[str, Any], method: Method, message: str
) -> None:
    rest = {} if name != "dpo" or not options.get("precompute_ref_log_probs") else {"per_device_train_batch_size": 4}
    trainer = build(name, tiny_task, tmp_path, lora=lora, **options, **rest)
    with pytest.raises(Unsupported, match=message):
        attach(trainer, method)
    attach(trainer, BEMA(update_every=1))  # a variant needs no reference


def test_what_no_adapter_holds_is_refused(tiny_task: Task, tmp_path: Path) -> None:
    trainer = build("dpo", tiny_task, tmp_path, lora={})
    trainer.model.base_model.model.model.norm.weight.requires_grad_(True)
    with pytest.raises(Unsupported, match=r"and the policy also trains '.*norm\.weight', which no adapter holds"):
        attach(trainer, SYNC)


def test_biases_beside_an_adapter_leave_no_second_one(tiny_task: Task, tmp_path: Path) -> None:
    trainer = build("dpo", tiny_task, tmp_path, lora={"bias": "all"})  # of a model without any, nothing else tells
    with pytest.raises(Unsupported, match="PEFT has one alone where biases are trained; train the adapter with bias="):
        attach(trainer, SYNC)


def test_one_method_moves_the_reference(tiny_task: Task, tmp_path: Path) -> None:
    trainer = build("dpo", tiny_task, tmp_path)
    with pytest.raises(
        Unsupported, match="sync_reference and warp_anchor both work on the reference; keep one of them"
    ):
        attach(trainer, SYNC, WARPAnchor())
    attach(trainer, SYNC)
    with pytest.raises(Unsupported, match="both work on the reference"):
        attach(trainer, WARPAnchor())


@pytest.mark.parametrize("method", [SyncReference(sync_every=1), WARPAnchor(), BEMA(into="reference")])
def test_a_kl_term_that_is_switched_off_has_no_reference_to_move(method: Method) -> None:
    off = ElasticReset(decay=0.5, reset_every=2, reference="none")
    with pytest.raises(Unsupported, match=r"elastic_reset switches the KL term off .* works on its reference"):
        check_together([off, method])


def test_trainers_without_a_reference_are_refused(tiny_task: Task, tmp_path: Path) -> None:
    from transformers import TrainingArguments

    for model, message in [
        (load_model(tiny_task.initial), "sync_reference needs a reference model, and Trainer keeps none"),
        (get_peft_model(load_model(tiny_task.initial), LoraConfig(**ADAPTER)), "Trainer is not known to have one"),
    ]:
        with pytest.raises(Unsupported, match=message):
            attach(Trainer(model, TrainingArguments(str(tmp_path), **OPTIONS)), SYNC)
    odd = get_peft_model(load_model(tiny_task.initial), LoraConfig(**ADAPTER), adapter_name="mine")
    trainer = build("dpo", tiny_task, tmp_path)
    trainer.model, trainer.ref_model = odd, None
    with pytest.raises(Unsupported, match="the policy's adapter is called mine; name it 'default'"):
        attach(trainer, SYNC)
    trainer.model = get_peft_model(load_model(tiny_task.initial), LoraConfig(**ADAPTER))
    trainer.is_fsdp_enabled, trainer.accelerator.state.fsdp_plugin = True, None
    trainer.accelerator = type("Sharded", (), {"is_fsdp2": True})()
    with pytest.raises(Unsupported, match="must be there before FSDP2 shards the policy; give the trainer a get_peft"):
        attach(trainer, SYNC)


def test_what_was_changed_after_attach_is_checked_when_training_begins(tiny_task: Task, tmp_path: Path) -> None:
    trainer = build("dpo", tiny_task, tmp_path)
    attach(trainer, SYNC)
    trainer.beta = 0.0
    with pytest.raises(Unsupported, match="with beta 0 there is none"):
        trainer.train()


@pytest.mark.parametrize(
    ("algorithm", "arm", "message"),
    [
        (
            {"name": "grpo", "beta": 0.0},
            {"warp_anchor": {}},
            "warp_anchor works on the reference, and with beta 0 there is none",
        ),
        ({"name": "rloo", "sync_ref_model": True}, {"sync_reference": {"sync_every": 2}}, "TRL moves it as well"),
        (
            {"name": "dpo", "precompute_ref_log_probs": True},
            {"bema": {"update_every": 2, "into": "reference"}},
            "beforeh",
        ),
        (
            {"name": "dpo", "max_steps": 6},
            {"sync_reference": {}},
            "would never change the reference: sync_every is 512",
        ),
    ],
)
def test_a_study_refuses_before_anything_is_trained(
    algorithm: dict[str, Any], arm: dict[str, Any], message: str
) -> None:
    from untaxed.studies.bench import prepare
    from untaxed.studies.spec import parse_spec

    content = {"name": "x", "models": {"initial": "pocket"}, "algorithm": algorithm, "methods": ["plain", arm]}
    with pytest.raises((Unsupported, SpecError), match=message):
        prepare(parse_spec(content))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_average_is_shown_as_reference_only_where_no_samples_wait(tiny_task: Task, tmp_path: Path) -> None:
    trainer = build("rloo", tiny_task, tmp_path, num_iterations=2, max_steps=7)
    attached = attach(trainer, ElasticReset(decay=0.5, reset_every=6, reference="average"))
    references = [theirs(trainer)]
    attached.observer = lambda step, *, last, phase: references.append(theirs(trainer)) if phase != "after" else None
    trainer.train()
    assert [step for step in range(1, 8) if not same(references[step - 1], references[step])] == [2, 4, 7]
    assert same(references[7], references[0])  # the reset of step 6, after its observation, made the average initial
