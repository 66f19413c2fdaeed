"""The drift meter on the trainer's held-out prompts, and on general ones beside them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, disable_progress_bars, enable_progress_bars
from test_attach import OPTIONS
from transformers import DataCollatorForLanguageModeling, PrinterCallback, Trainer, TrainingArguments
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

from untaxed.callbacks import DriftMeter, ElasticReset, Guard
from untaxed.checkpoints import load_model, load_tokenizer
from untaxed.errors import StoreError, Unsupported
from untaxed.sites import ALONE, Host
from untaxed.training import Task, attach
from untaxed.training.held_out import MOST, find_held_out, held_out

GENERAL = ["w7 w8", "w9"]
METER = DriftMeter(every=2, max_new_tokens=5)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    disable_progress_bars()
    yield
    enable_progress_bars()


def pairs(*prompts: Any) -> Dataset:
    return Dataset.from_list([{"prompt": one, "chosen": "w1 w2", "rejected": "w3"} for one in prompts])


def trainer_on(task: Task, folder: Path, train: Any, held: Any, **options: Any) -> DPOTrainer:
    made = DPOTrainer(
        load_model(task.initial),
        args=DPOConfig(str(folder), **{**OPTIONS, "max_steps": 4, **options}),
        train_dataset=train,
        eval_dataset=held,
        processing_class=load_tokenizer(task.initial),
    )
    made.remove_callback(PrinterCallback)
    return made


class Shown:
    """Stands for a trainer, of which only the data is looked at."""

    def __init__(self, train: Any, held: Any) -> None:
        self.train_dataset, self.eval_dataset = train, held


def found(train: Any, held: Any) -> tuple[list[Any], int | None]:
    return find_held_out(Shown(train, held))  # type: ignore[arg-type]


def test_held_out_prompts_are_measured_by_default(tiny_task: Task, tmp_path: Path, caplog: Any) -> None:
    trainer = trainer_on(tiny_task, tmp_path, pairs("w1", "w2", "w3", "w4"), pairs("w5 w6", "w2", "w7", "w5 w6"))
    attached = attach(trainer, METER)
    assert not [
        one for one in caplog.messages if one.startswith("drift meter")
    ]  # it is said once, when training begins
    with caplog.at_level(logging.INFO, logger="untaxed"):
        trainer.train()
    meter = attached._meters["drift_meter"]
    assert meter._sets[""].prompts == ("w5 w6", "w7")
    assert (
        caplog.messages.count("drift meter: 1 prompts of eval_dataset are in train_dataset, too, and are left out") == 1
    )
    tokens = attached.drift()["tokens"]
    assert f"drift meter: of the initial model's samples: 2 prompts, {tokens} tokens" in caplog.messages
    assert [line["drift/tokens"] for line in trainer.state.log_history if "drift/tokens" in line] == [tokens, tokens]
    described = attached.describe()["methods"][0]
    assert (described["prompts"], described["tokens"]) == ("held out", tokens)


def test_the_same_prompts_in_the_same_order_and_at_most_64() -> None:
    many = [f"w{a} w{b}" for a, b in itertools.product(range(20), repeat=2)]
    kept, left_out = found(pairs("w1"), pairs(*many))
    assert len(kept) == MOST == 64
    assert kept == [one for one in many if one in kept]  # drawn from all of them, in their order
    assert set(kept) & set(many[-200:])
    assert left_out == 0
    assert found(pairs("w1"), pairs(*many, *many)) == (kept, 0)


def test_of_several_sets_the_first_with_prompts(caplog: Any) -> None:
    texts = Dataset.from_list([{"text": "w1"}])
    assert found(pairs("w1"), {"texts": texts, "pairs": pairs("w2"), "more": pairs("w3")}) == (["w2"], 0)
    assert found({"a": pairs("w1"), "b": pairs("w2")}, pairs("w2", "w3")) == (["w3"], 1)
    assert found([{"prompt": "w2"}], [{"prompt": "w2"}, {"prompt": "w3"}]) == (["w3"], 1)


def test_conversations_are_compared_by_what_they_say() -> None:
    def asked(text: str, **more: Any) -> list[dict[str, Any]]:
        return [{"role": "user", "content": text, **more}]

    held = Dataset.from_list([{"prompt": asked("w1")}, {"prompt": asked("w2", name="me")}])
    # where one message has a name, the table gives every message one: None
    assert held[0]["prompt"][0]["name"] is None
    assert found(Dataset.from_list([{"prompt": asked("w1")}]), held) == ([asked("w2", name="me")], 1)
    assert found(Dataset.from_list([{"prompt": "w1"}]), held) == ([asked("w1"), asked("w2", name="me")], 0)


def test_a_training_set_that_shows_no_prompts_is_not_compared(caplog: Any) -> None:
    read: list[int] = []

    def stream() -> Any:
        read.append(1)
        yield {"prompt": "w1"}

    from datasets import IterableDataset

    for train in (IterableDataset.from_generator(stream), Dataset.from_list([{"text": "w1"}]), None):
        trainer: Any = Shown(train, pairs("w1"))
        assert held_out(trainer) == ["w1"]
    assert not read
    said = "drift meter: train_dataset shows no prompts to compare with; none of eval_dataset's are left out"
    assert caplog.messages == [said, said]  # nothing is trained on where there is no training set


class OwnRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Runs code for every row."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, at: int) -> dict[str, Any]:
        raise AssertionError


@pytest.mark.parametrize(
    "held", [None, {}, OwnRows(), Dataset.from_list([{"text": "w1"}]), pairs("w5").to_iterable_dataset(), pairs("")]
)
def test_without_held_out_prompts_attach_refuses_with_both_ways_out(
    tiny_task: Task, tmp_path: Path, monkeypatch: Any, held: Any
) -> None:
    trainer = trainer_on(tiny_task, tmp_path, pairs("w1"), None)
    trainer.eval_dataset = held
    message = (
        r"no eval_dataset that holds a column `prompt` and does not stream; build .*, or give DriftMeter\(prompts="
    )
    with pytest.raises(Unsupported, match=message):
        attach(trainer, METER)
    assert attach(trainer, DriftMeter(["w5"], every=2)).methods


def test_prompts_that_are_all_trained_on_are_refused(tiny_task: Task, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_task, tmp_path, pairs("w1", "w2"), pairs("w2", "w1", "w1"))
    with pytest.raises(
        Unsupported, match=r"all 2 of eval_dataset are in train_dataset, too; build .* or give DriftMeter"
    ):
        attach(trainer, METER)


def test_a_loop_without_held_out_prompts_is_refused(tiny_task: Task) -> None:
    model, tokenizer = load_model(tiny_task.initial), load_tokenizer(tiny_task.initial)
    with pytest.raises(Unsupported, match=r"give DriftMeter\(prompts=\[…\]\) or Host\(held_out=…\)"):
        METER.between(model, ALONE)
    live: Any = METER.between(model, Host(tokenizer=tokenizer, held_out=lambda: ["w1", "w2"]))
    assert live._sets[""].prompts == ("w1", "w2")


def test_held_out_prompts_that_do_not_fit_are_left_out(tiny_task: Task, caplog: Any) -> None:
    model, tokenizer = load_model(tiny_task.initial), load_tokenizer(tiny_task.initial)
    long = " ".join(["w1"] * 62)  # and 5 new tokens: more than the 64 that the model reads
    live: Any = METER.between(model, Host(tokenizer=tokenizer, held_out=lambda: ["w1", long]))
    assert live._sets[""].prompts == ("w1",)
    left = "1 of 2 held-out prompts are left out, too long for the context of 64 tokens with 5 new ones"
    assert f"drift meter: {left}" in caplog.messages
    with pytest.raises(
        Unsupported, match=r"all 1 held-out prompts are too long for the context .* lower max_new_tokens"
    ):
        METER.between(model, Host(tokenizer=tokenizer, held_out=lambda: [long]))


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def flat(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


TRAINERS: dict[str, tuple[Callable[..., Trainer], Any, Callable[[Any, Any], dict[str, Any]]]] = {
    "dpo": (DPOTrainer, DPOConfig, lambda p, a: {"prompt": p, "chosen": a("w1"), "rejected": a("w2")}),
    "kto": (KTOTrainer, KTOConfig, lambda p, a: {"prompt": p, "completion": a("w1"), "label": True}),
    "sft": (SFTTrainer, SFTConfig, lambda p, a: {"prompt": p, "completion": a("w1")}),
    "rloo": (RLOOTrainer, RLOOConfig, lambda p, a: {"prompt": p}),
    "grpo": (GRPOTrainer, GRPOConfig, lambda p, a: {"prompt": p}),
}


@pytest.mark.filterwarnings("ignore")  # TRL's own, on sizes and templates that are beside the point
@pytest.mark.parametrize("talks", [False, True])
@pytest.mark.parametrize("name", TRAINERS)
def test_trl_keeps_the_prompts_of_its_eval_dataset(tiny_task: Task, tmp_path: Path, name: str, talks: bool) -> None:
    kind, config, row = TRAINERS[name]
    tokenizer = load_tokenizer(tiny_task.initial)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    put = user if talks else str

    def rows(*texts: str) -> Dataset:
        return Dataset.from_list([row(put(text), answer if talks else str) for text in texts])

    sampled = {"num_generations": 2} if name in ("rloo", "grpo") else {}
    trainer: Any = kind(
        load_model(tiny_task.initial),
        args=config(str(tmp_path), **OPTIONS, **sampled),
        train_dataset=rows("w1", "w2", "w3", "w4"),
        eval_dataset=rows("w3", "w5", "w6", "w7"),
        processing_class=tokenizer,
        **({"reward_funcs": flat} if sampled else {}),
    )
    assert find_held_out(trainer) == ([put("w5"), put("w6"), put("w7")], 1)
    assert attach(trainer, METER).methods == (METER,)


def test_any_transformers_trainer_has_held_out_prompts(tiny_task: Task, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_task.initial)
    rows = Dataset.from_list([{"prompt": text, **tokenizer(text)} for text in ("w1 w2", "w3 w4")])
    trainer = Trainer(
        load_model(tiny_task.initial),
        TrainingArguments(str(tmp_path), **{**OPTIONS, "max_steps": 2}),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        train_dataset=rows.select([0]),
        eval_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    attached = attach(trainer, METER)
    trainer.train()
    assert attached._meters["drift_meter"]._sets[""].prompts == ("w3 w4",)


# --- General prompts and the saved state -----------------------------------------------------------------------------


def test_general_prompts_are_read_and_guarded_beside_the_others(tiny_task: Task, tmp_path: Path, caplog: Any) -> None:
    guards = [Guard({"general_forward_kl": 1e-9}), Guard({"general_length": {"above": 99}}, do="stop")]
    meter = DriftMeter(["w1 w2"], every=2, max_new_tokens=5, general_prompts=GENERAL, guards=guards)
    trainer = trainer_on(tiny_task, tmp_path, pairs("w1"), None, learning_rate=1e-2)
    attached = attach(trainer, meter, ElasticReset(decay=0.9, reset_when={"general_forward_kl": 1e3}))
    trainer.train()
    names = ("forward_kl", "entropy", "length", "distinct_1", "distinct_2", "tokens")
    line = next(line for line in trainer.state.log_history if "drift/forward_kl" in line)
    assert {f"drift/{name}" for name in names} | {f"drift/general_{name}" for name in names} <= line.keys()
    acted = next(line for line in trainer.state.log_history if "drift/guard/warn/general_forward_kl" in line)
    assert acted["drift/guard/warn/general_forward_kl"] == line["drift/general_forward_kl"] > 0
    assert line["drift/tokens"] <= 5 < line["drift/general_tokens"] <= 10
    assert "general_prompts" in attached.describe()["methods"][0]
    assert "general_tokens" in attached.describe()["methods"][0]


def test_a_reset_by_what_is_not_measured_is_refused(tiny_task: Task, tmp_path: Path) -> None:
    trainer = trainer_on(tiny_task, tmp_path, pairs("w1"), None)
    for measure in ("general_forward_kl", "tax"):
        reset = ElasticReset(decay=0.9, reset_when={measure: 0.5})
        with pytest.raises(
            Unsupported, match=f"reset_when goes by {measure}, which the drift meter .* general_prompts"
        ):
            attach(trainer, DriftMeter(["w1"], every=2), reset)


def test_a_resume_with_other_held_out_prompts_is_refused(tiny_task: Task, tmp_path: Path) -> None:
    def made(held: Dataset) -> DPOTrainer:
        return trainer_on(tiny_task, tmp_path, pairs("w1"), held, save_strategy="steps", save_steps=2)

    straight = made(pairs("w5", "w6"))
    attach(straight, METER)
    straight.train()
    readings = [line["drift/forward_kl"] for line in straight.state.log_history if "drift/forward_kl" in line]
    resumed, other = made(pairs("w5", "w6")), made(pairs("w5", "w7"))
    attach(resumed, METER), attach(other, METER)
    with pytest.raises(
        StoreError, match="holds samples after other prompts, as many; give a state that was saved with"
    ):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [line["drift/forward_kl"] for line in resumed.state.log_history if "drift/forward_kl" in line] == readings
