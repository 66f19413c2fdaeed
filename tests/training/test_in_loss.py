"""Terms that methods add to the loss, in every trainer: what they add, when they do not, through a resume."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from test_attach import OPTIONS, dpo, final
from test_laws import KilledError, read_log, run
from tiny import WORDS
from torch.nn.functional import cross_entropy, log_softmax
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from untaxed.callbacks import ElasticReset, SyncReference
from untaxed.checkpoints import load_model, load_tokenizer
from untaxed.errors import DataError, RunFailed, StoreError, Unsupported
from untaxed.method import Method
from untaxed.objectives import KL, RPO, Distill, KLLoss, Replay
from untaxed.optim import L2
from untaxed.training import Task, attach, make_trainer
from untaxed.training.tokens import tokens_of_step
from untaxed.weights import same, trainable

TEXTS = tuple(" ".join(WORDS[(3 * i + 5 * k + k * k) % 28] for k in range(2 + i % 6)) for i in range(11))
TERMS: list[Method] = [
    Replay(texts=TEXTS, coefficient=0.5, batch_size=5),
    Replay(texts=TEXTS, share=0.4),
    KLLoss(prompts=TEXTS, coefficient=2.0),
    KLLoss(prompts=TEXTS, direction="reverse", batch_size=3),
    Distill(prompts=TEXTS, temperature=3.0),
]
FREE: dict[str, Any] = {"max_steps": 2}


@pytest.mark.parametrize("name", ["dpo", "kto", "rloo", "grpo"])
@pytest.mark.filterwarnings("ignore:grpo with beta 0")
def test_without_weight_nothing_changes_and_with_it_something_does(tiny_task: Task, tmp_path: Path, name: str) -> None:
    plain, _ = run(tiny_task, name, folder=tmp_path, arguments=FREE)
    off = [type(term)(**{term.field: TEXTS, "coefficient": 0.0}) for term in (TERMS[0], TERMS[2], TERMS[4])]
    silent, _ = run(tiny_task, name, *off, folder=tmp_path, arguments=FREE)
    assert same(plain, silent)
    ends = [run(tiny_task, name, *TERMS, folder=tmp_path, arguments=FREE)[0] for _ in range(2)]
    assert not same(plain, ends[0])
    assert same(*ends)


@pytest.mark.parametrize("name", ["kto", "rloo", "grpo", "sft"])
@pytest.mark.filterwarnings("ignore:grpo with beta 0")
def test_what_is_added_does_not_depend_on_micro_batches(tiny_task: Task, tmp_path: Path, name: str) -> None:
    """One step of plain gradient descent: what it moves more than without a term is that term's gradient."""
    first, second = (_added(tiny_task, name, tmp_path, micro, *TERMS[:3]) for micro in (4, 1))
    assert max(float(change.abs().max()) for change in first.values()) > 1e-3
    for key, change in first.items():
        torch.testing.assert_close(second[key], change, rtol=1e-3, atol=2e-6)


def _added(task: Task, name: str, folder: Path, micro: int, *terms: Method) -> dict[str, torch.Tensor]:
    ends = []
    for methods in ([], terms):
        trainer = sft(task, folder, micro) if name == "sft" else _trainer(task, name, folder, micro)
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1.0)
        if methods:
            attach(trainer, *methods)
        ends.append(final(trainer))
    return {key: ends[1][key] - ends[0][key] for key in ends[0]}


def _trainer(task: Task, name: str, folder: Path, micro: int) -> Any:
    size = {"batch_size": 8, "micro_batch_size": 2 * micro if name in ("rloo", "grpo") else micro}
    arguments = {"max_steps": 1, "max_grad_norm": 0.0, "lr_scheduler_type": "constant", **size}
    return make_trainer(name, arguments, task=task, seed=0, output_dir=folder)


def sft(task: Task, folder: Path, micro: int = 4, **options: Any) -> SFTTrainer:
    rows = Dataset.from_list([{"text": f"{row['prompt']}{row['chosen']}"} for row in task.preferences])
    sizes = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 8 // micro}
    fixed = {"max_steps": 1, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    trainer = SFTTrainer(
        load_model(task.initial),
        SFTConfig(str(folder), **{**OPTIONS, **sizes, **fixed, **options}),
        train_dataset=rows,
        processing_class=load_tokenizer(task.initial),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def test_replay_is_the_mean_loss_of_its_texts(tiny_task: Task, tmp_path: Path) -> None:
    """All texts in one batch: the gradient by hand, the end of text among what is predicted."""
    moved = _added(tiny_task, "dpo", tmp_path, 4, Replay(texts=TEXTS, coefficient=0.5, batch_size=len(TEXTS)))
    model, tokenizer = load_model(tiny_task.initial), load_tokenizer(tiny_task.initial)
    rows = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in TEXTS]
    costs = [cross_entropy(model(torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:])) for ids in rows]
    counts = [len(ids) - 1 for ids in rows]
    (0.5 * sum(cost * count for cost, count in zip(costs, counts)) / sum(counts)).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(moved[name], -parameter.grad, rtol=1e-3, atol=2e-6)


def test_the_terms_values_are_logged_beside_the_loss(tiny_task: Task, tmp_path: Path) -> None:
    """At the first step nothing has moved: the likelihood is initial's, and no distribution differs."""
    log = tmp_path / "log.jsonl"
    run(tiny_task, "dpo", Replay(texts=TEXTS, batch_size=11), KLLoss(prompts=TEXTS), folder=tmp_path, log=log)
    lines = read_log(log)
    model, tokenizer = load_model(tiny_task.initial), load_tokenizer(tiny_task.initial)
    total = places = 0.0
    for text in TEXTS:
        ids = torch.tensor(tokenizer(text)["input_ids"] + [tokenizer.eos_token_id])
        total += cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="sum").item()
        places += len(ids) - 1
    assert lines[0]["loss/replay"] == pytest.approx(total / places, rel=1e-5)
    assert lines[0]["loss/kl_loss"] == pytest.approx(0, abs=1e-6)
    assert lines[-1]["loss/kl_loss"] > 1e-5
    assert lines[-1]["loss/replay"] < lines[0]["loss/replay"]


def test_lines_of_several_steps_have_their_mean(tiny_task: Task, tmp_path: Path) -> None:
    seldom, often = (dpo(tiny_task, tmp_path, logging_steps=steps, max_steps=4) for steps in (2, 1))
    for trainer in (seldom, often):
        attach(trainer, TERMS[0])
        trainer.train()
    each, pairs = ([line["loss/replay"] for line in t.state.log_history if "loss" in line] for t in (often, seldom))
    assert pairs == pytest.approx([(each[0] + each[1]) / 2, (each[2] + each[3]) / 2])


@pytest.mark.parametrize(("name", "method"), [("dpo", TERMS[0]), ("rloo", TERMS[1]), ("grpo", TERMS[2])])
@pytest.mark.filterwarnings("ignore:grpo with beta 0")
def test_resume_is_bit_identical(tiny_task: Task, tmp_path: Path, name: str, method: Method) -> None:
    """Killed in the middle of an order of texts, after a reset; grpo has no reference, and keeps initial's weights."""
    options: dict[str, Any] = {"resume_dir": tmp_path / "resume", "checkpoint_every": 2}
    methods = [method, ElasticReset(decay=0.6, reset_every=3)]
    straight, _ = run(tiny_task, name, *methods, folder=tmp_path)

    def kill(moment: Any) -> None:
        if moment.step >= 5:
            raise KilledError

    with pytest.raises(KilledError):
        run(tiny_task, name, *methods, folder=tmp_path, observe=kill, **options)
    resumed, _ = run(tiny_task, name, *methods, folder=tmp_path, **options)
    assert same(straight, resumed)


def test_a_resume_with_other_texts_is_refused(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    attach(trainer, Replay(texts=TEXTS))
    trainer.train()
    other = dpo(tiny_task, tmp_path, max_steps=4)
    attach(other, Replay(texts=TEXTS[:9]))
    with pytest.raises(StoreError, match="the saved state of replay belongs to other texts"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_all_texts_are_read_once_before_one_is_read_again(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path, max_steps=3)
    attached = attach(trainer, Replay(texts=TEXTS, batch_size=11), Replay(texts=TEXTS, batch_size=5, seed=1))
    steps: list[list[list[int]]] = []
    attached.observer = lambda step, **_: steps.append([list(term._step) for term in attached.in_loss.terms])
    trainer.train()
    assert [sorted(step[0]) for step in steps] == [list(range(11))] * 3
    assert len({tuple(step[0]) for step in steps}) == 3
    assert sorted([text for step in steps for text in step[1]][:11]) == list(range(11))


@pytest.mark.parametrize("name", ["dpo", "kto", "rloo"])
def test_a_share_is_kept_of_all_tokens_that_are_learned_from(tiny_task: Task, tmp_path: Path, name: str) -> None:
    trainer = make_trainer(name, {"micro_batch_size": 2}, task=tiny_task, seed=0, output_dir=tmp_path)
    attached = attach(trainer, Replay(texts=TEXTS, share=0.4))
    counted, read = [], []
    inner = trainer.compute_loss

    def watched(model: Any, inputs: Any, **rest: Any) -> Any:
        names = ("prompt_mask", "completion_mask") if name == "rloo" else ("attention_mask",)
        counted.append(sum(int(inputs[one].sum()) for one in names))
        return inner(model, inputs, **rest)

    trainer.compute_loss = watched
    [tokens] = [attached.in_loss]
    attached.observer = lambda step, **_: read.extend(
        len(tokens.terms[0]._texts[text]) for text in tokens.terms[0]._step
    )
    trainer.train()
    assert sum(read) / (sum(read) + sum(counted)) == pytest.approx(0.4, abs=8 / sum(counted))  # less than a text more


def test_a_share_that_cannot_be_counted_is_refused(tiny_task: Task, tmp_path: Path) -> None:
    trainer = make_trainer("rloo", {"micro_batch_size": 2}, task=tiny_task, seed=0, output_dir=tmp_path)
    trainer.args.steps_per_generation = 3
    with pytest.raises(Unsupported, match="replay: share counts the tokens of a step before it is taken"):
        attach(trainer, Replay(texts=TEXTS, share=0.4))
    with pytest.raises(Unsupported, match="share counts tokens by a batch's attention_mask"):
        tokens_of_step(dpo(tiny_task, tmp_path), [{"input_ids": torch.ones(1, 2)}])


def test_evaluation_passes_are_not_touched(tiny_task: Task, tmp_path: Path) -> None:
    rows = Dataset.from_list(list(tiny_task.preferences[:8]))
    plain, ours = dpo(tiny_task, tmp_path), dpo(tiny_task, tmp_path)
    attach(ours, *TERMS[::2])
    assert plain.evaluate(rows)["eval_loss"] == ours.evaluate(rows)["eval_loss"]


def test_detach_takes_them_off(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path)
    attach(trainer, *TERMS).detach()
    assert "compute_loss" not in vars(trainer)
    assert same(final(trainer), final(dpo(tiny_task, tmp_path)))


def test_twice_is_once_with_both(tiny_task: Task, tmp_path: Path) -> None:
    once, twice = dpo(tiny_task, tmp_path), dpo(tiny_task, tmp_path)
    attach(once, TERMS[0], TERMS[2])
    attach(twice, TERMS[0])
    attach(twice, TERMS[2])
    assert same(final(once), final(twice))


@pytest.mark.parametrize("lora", [False, True])
def test_initial_is_the_reference_or_the_weights_of_the_beginning(tiny_task: Task, tmp_path: Path, lora: bool) -> None:
    """A reference that moves is not initial; then the policy is lent its own first weights, an adapter its own."""
    asked, kept = (dpo(tiny_task, tmp_path, lora=lora) for _ in range(2))
    first, second = attach(asked, *TERMS[2:]), attach(kept, *TERMS[2:])
    if not lora:
        kept.ref_model.lm_head.weight.data[0] += 1e-6  # not the initial model any more
    ends = [final(asked), final(kept)]
    sizes = [sum(t.numel() for t in one.in_loss._initial._kept.values()) for one in (first, second)]
    own = sum(tensor.numel() for tensor in trainable(kept.model).values())
    assert sizes == ([own, own] if lora else [0, own])
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=0, atol=1e-4)


def test_initial_stays_initial_beside_a_reference_that_moves(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path)
    attached = attach(trainer, KLLoss(prompts=TEXTS), SyncReference(share=1.0, sync_every=2))
    trainer.train()
    initial = trainable(load_model(tiny_task.initial))
    assert same(attached.in_loss._initial._kept, initial)


def test_a_large_coefficient_keeps_the_distributions(tiny_task: Task, tmp_path: Path) -> None:
    """What the KL holds is what the model says on the prompts, not its weights."""
    ends = []
    for methods in ([], [KLLoss(prompts=TEXTS, coefficient=100.0, batch_size=11)]):
        trainer = dpo(tiny_task, tmp_path, max_steps=12, learning_rate=3e-3)
        if methods:
            attach(trainer, *methods)
        trainer.train()
        ends.append(_kl_on_texts(tiny_task, trainer.model))
    assert ends[1] < 0.05 * ends[0]


def _kl_on_texts(task: Task, model: Any) -> float:
    initial, tokenizer = load_model(task.initial), load_tokenizer(task.initial)
    total = 0.0
    with torch.no_grad():
        for text in TEXTS:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            p, q = (log_softmax(one(ids).logits[0], dim=-1) for one in (initial, model))
            total += float((p.exp() * (p - q)).sum(-1).mean())
    return total


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # TRL's own
def test_dropout_and_recomputed_activations_leave_the_algorithm_its_random_numbers(
    tiny_task: Task, tmp_path: Path
) -> None:
    ends = []
    for methods in ([], [Replay(texts=TEXTS, coefficient=0.0), KLLoss(prompts=TEXTS, coefficient=0.0)]):
        options = {"activation_checkpointing": True, "disable_dropout": False, "bf16": True}
        trainer = dpo(tiny_task, tmp_path, **options)
        for layer in trainer.model.model.layers:
            layer.self_attn.attention_dropout = 0.2
        if methods:
            attach(trainer, *methods)
        ends.append(final(trainer))
    assert same(*ends)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # TRL's own
def test_recomputed_activations_give_the_same_weights(tiny_task: Task, tmp_path: Path) -> None:
    ends = []
    for recomputed in (False, True):
        trainer = dpo(tiny_task, tmp_path, activation_checkpointing=recomputed)
        attach(trainer, TERMS[0], TERMS[2])
        ends.append(final(trainer))
    assert same(*ends)


def test_a_term_that_is_not_finite_stops_the_run(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path)
    attach(trainer, Replay(texts=TEXTS, coefficient=1e38, batch_size=2))
    inner = trainer.compute_loss

    def broken(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            trainer.model.lm_head.weight.mul_(float("inf"))
        return inner(*args, **kwargs)

    trainer.compute_loss = broken
    with pytest.raises(RunFailed, match="what replay adds to the loss is nan at step 1; lower learning_rate"):
        trainer.train()


def test_texts_that_are_too_long_are_counted(tiny_task: Task, tmp_path: Path) -> None:
    long = " ".join(WORDS * 3)
    trainer = dpo(tiny_task, tmp_path)
    attach(trainer, Replay(texts=[*TEXTS, long]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    told = "1 of 12 replay: texts are longer than the model's context of 64 tokens and are left out"
    assert sum(told in str(each.message) for each in caught) == 1
    trainer = dpo(tiny_task, tmp_path)
    attach(trainer, KLLoss(prompts=[long]))
    with pytest.raises(DataError, match="kl_loss: prompts are all longer than the model's context of 64 tokens"):
        trainer.train()


def test_what_cannot_work_is_refused_with_the_way_out(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path)
    with pytest.raises(Unsupported, match=r"replay has nothing to read: give Replay\(texts=\[…\]\)"):
        attach(trainer, Replay())
    with pytest.raises(Unsupported, match=r"kl_loss has nothing to read: give KLLoss\(prompts=\[…\]\)"):
        attach(trainer, KLLoss())
    with pytest.raises(Unsupported, match=r"rpo is an argument of the algorithm itself: build the trainer with loss_t"):
        attach(trainer, RPO())
    attach(dpo(tiny_task, tmp_path, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5]), RPO(eta=0.5))
    trainer.processing_class = None
    attach(trainer, Replay(texts=TEXTS))
    with pytest.raises(Unsupported, match="replay: texts are read as tokens: build the trainer with processing_class"):
        trainer.train()


def test_rpo_is_a_loss_of_trls_own_list(tiny_task: Task, tmp_path: Path) -> None:
    plain, _ = run(tiny_task, "dpo", folder=tmp_path)
    off, _ = run(tiny_task, "dpo", RPO(eta=0.0), folder=tmp_path)
    on, _ = run(tiny_task, "dpo", RPO(eta=1.0), folder=tmp_path)
    both, _ = run(tiny_task, "dpo", RPO(eta=1.0), KL(beta=0.1), folder=tmp_path)
    assert same(plain, off)
    assert not same(plain, on)
    assert same(on, both)  # beta 0.1 is TRL's own
    with pytest.raises(Unsupported, match=r"rpo adds to DPO's loss .*: ipo is DPO with another loss in that place"):
        run(tiny_task, "ipo", RPO(), folder=tmp_path)
    with pytest.raises(Unsupported, match=r"rpo adds to DPO's loss .*: kto has no chosen answers beside rejected ones"):
        run(tiny_task, "kto", RPO(), folder=tmp_path)


def test_they_work_beside_methods_of_other_sites(tiny_task: Task, tmp_path: Path) -> None:
    methods = [Replay(texts=TEXTS), L2(strength=1e9), ElasticReset(decay=0.6, reset_every=2)]
    ends, _ = run(tiny_task, "dpo", *methods, folder=tmp_path)
    for name, tensor in load_model(tiny_task.initial).state_dict().items():
        torch.testing.assert_close(ends[name], tensor, rtol=0, atol=1e-7)
