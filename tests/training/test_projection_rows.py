"""OGPSA and NSPO in trainers and studies: what they are given, what they log, how they resume."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from test_attach import dpo, final
from test_laws import KilledError, run
from tiny import WORDS

from untaxed import methods
from untaxed.errors import SpecError, Unsupported
from untaxed.method import Method
from untaxed.optim import Pipeline
from untaxed.projections import NSPO, OGPSA, NullSpace
from untaxed.sites import Context
from untaxed.training import Task, attach, with_inputs
from untaxed.weights import same, trainable

PROMPTS = [" ".join(WORDS[(i * j) % 28] for j in range(1, 4 + i % 5)) for i in range(40)]
SETS = {
    "texts": PROMPTS[:6],
    "answers": [{"prompt": prompt, "completion": WORDS[at % 28]} for at, prompt in enumerate(PROMPTS[:9])],
    "pairs": [{"prompt": p, "chosen": WORDS[at], "rejected": WORDS[at + 9]} for at, p in enumerate(PROMPTS[:4])],
}
PAIRS = {"pairs": SETS["pairs"]}
FREE: dict[str, Any] = {"threshold": "free_share", "value": 0.3}
ROWS: list[Method] = [
    OGPSA(reference_sets=SETS, refresh_every=2),
    OGPSA(reference_sets=SETS, refresh_every=2, scope="model", when="conflict", site="update"),
    OGPSA(reference_sets=PAIRS, refresh_every=4, loss="preference"),
    NSPO(prompts=PROMPTS, every=4, **FREE),  # with a tail
    NSPO(prompts=PROMPTS, site="update", layers="mlp", **FREE),
]


@pytest.fixture
def task(tiny_task: Task) -> Task:
    return dataclasses.replace(tiny_task, general_prompts=PROMPTS, reference_sets=SETS)


def label(method: Method) -> str:
    return f"{method.name}-{'-'.join(map(str, method.settings().values()))}"


@pytest.mark.parametrize("method", ROWS, ids=label)
def test_each_acts_in_a_trainer_that_somebody_built_and_logs(task: Task, tmp_path: Path, method: Method) -> None:
    plain = final(dpo(task, tmp_path))
    trainer = dpo(task, tmp_path, logging_steps=2)
    attached = attach(trainer, method)
    ours = final(trainer)
    assert not same(plain, ours)
    assert all(torch.isfinite(tensor).all() for tensor in ours.values())
    assert isinstance(attached.in_step.optimizer, Pipeline)
    key = f"{method.name}/removed_share"
    lines = [line for line in trainer.state.log_history if key in line]
    assert {line["step"] for line in lines} == ({4} if getattr(method, "every", 0) == 4 else {2, 4})
    assert all(0 < line[key] < 1 for line in lines)


def test_what_nspo_protects_stays_in_a_whole_training(task: Task, tmp_path: Path) -> None:
    trainer = dpo(task, tmp_path)
    before = {name: tensor.clone() for name, tensor in trainable(trainer.model).items()}
    attached = attach(trainer, ROWS[3])
    seen: dict[int, float] = {}

    def watch(step: int, **_: Any) -> None:
        rule = attached.in_step.optimizer.rules[0]
        found = [
            (moved - sub.remove(moved)).norm() / moved.norm()
            for name, sub in rule.subspaces.items()
            for moved in [trainable(trainer.model)[name] - before[name]]
        ]
        seen[step] = float(max(found))

    attached.observer = watch
    trainer.train()
    # the observer, and so every measurement, of the last step comes after the projection that was owed
    assert seen[4] < 1e-4 > seen[max(seen)]
    assert max(seen) % 4
    assert seen[3] > 1e-2


@pytest.mark.parametrize("name", ["dpo", "rloo"])
@pytest.mark.parametrize("method", [OGPSA(refresh_every=2), NSPO(every=2, **FREE)], ids=lambda method: method.name)
def test_a_study_gives_them_what_they_need(task: Task, tmp_path: Path, name: str, method: Method) -> None:
    log = tmp_path / "log.jsonl"
    ready = with_inputs([method], task)
    assert not ready[0].needed
    plain, _ = run(task, name, folder=tmp_path, arguments={"max_steps": 3})
    ours, _ = run(task, name, *ready, folder=tmp_path, arguments={"max_steps": 3}, log=log)
    assert not same(plain, ours)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all("loss" in line for line in lines)
    assert [f"{method.name}/removed_share" in line for line in lines] == (
        [True] * 3 if method.name == "ogpsa" else [False, True, False]
    )


@pytest.mark.parametrize("method", [ROWS[0], ROWS[3]], ids=label)
def test_a_killed_run_goes_on_to_the_bit(task: Task, tmp_path: Path, method: Method) -> None:
    """Killed at 5, checkpoints at 2 and 4: within an interval of the directions or of the projections."""
    method = dataclasses.replace(method, **({"refresh_every": 3} if method.name == "ogpsa" else {"every": 3}))
    options: dict[str, Any] = {"resume_dir": tmp_path / "resume", "checkpoint_every": 2}
    straight, _ = run(task, "dpo", method, folder=tmp_path, arguments={"max_steps": 5})

    def kill(moment: Any) -> None:
        if moment.step == 5:
            raise KilledError

    with pytest.raises(KilledError):
        run(task, "dpo", method, folder=tmp_path, arguments={"max_steps": 5}, observe=kill, **options)
    resumed, _ = run(task, "dpo", method, folder=tmp_path, arguments={"max_steps": 5}, **options)
    assert same(straight, resumed)


def test_both_together_and_beside_others(task: Task, tmp_path: Path) -> None:
    trainer = dpo(task, tmp_path, logging_steps=2)
    before = {name: tensor.clone() for name, tensor in trainable(trainer.model).items()}
    attached = attach(trainer, ROWS[0], ROWS[3], methods.build("update_dropout", {"density": 0.5}))
    after = final(trainer)
    protected = next(rule for rule in attached.in_step.optimizer.rules if isinstance(rule, NullSpace)).subspaces
    for name, subspace in protected.items():
        moved = after[name] - before[name]
        assert 0 < (moved - subspace.remove(moved)).norm() < 1e-4 * moved.norm()
    logged = {key for line in trainer.state.log_history for key in line}
    assert {"ogpsa/removed_share", "nspo/removed_share"} <= logged


@pytest.mark.parametrize("method", [OGPSA(site="update"), NSPO(site="update", **FREE)], ids=lambda method: method.name)
def test_the_first_step_of_a_warm_up_has_rate_0_and_is_no_matter(task: Task, tmp_path: Path, method: Method) -> None:
    arguments = {"max_steps": 4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}
    plain, _ = run(task, "dpo", folder=tmp_path, arguments=arguments)
    ours, _ = run(task, "dpo", *with_inputs([method], task), folder=tmp_path, arguments=arguments)
    assert not same(plain, ours)


def test_a_loss_of_the_users_own(task: Task, tmp_path: Path) -> None:
    def length(model: Any, batch: torch.Tensor) -> torch.Tensor:
        return model(input_ids=batch, labels=batch).loss

    method = OGPSA(reference_sets={"own": [torch.tensor([[4, 5, 6]]), torch.tensor([[7, 8]])]}, loss=length)
    assert method.settings()["loss"].endswith("length")
    trainer = dpo(task, tmp_path)
    attach(trainer, method)
    assert not same(final(trainer), final(dpo(task, tmp_path)))


def test_a_lora_adapter_is_taken_by_ogpsa_and_refused_by_nspo(task: Task, tmp_path: Path) -> None:
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from test_attach import OPTIONS
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    from untaxed.checkpoints import load_model, load_tokenizer

    def built() -> Any:
        model = get_peft_model(load_model(task.initial), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
        rows = Dataset.from_list(list(task.preferences))
        trainer = DPOTrainer(model, args=DPOConfig(str(tmp_path), **OPTIONS, logging_steps=1), train_dataset=rows,
                             processing_class=load_tokenizer(task.initial))  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        return trainer

    trainer = built()
    attach(trainer, OGPSA(reference_sets=PAIRS, refresh_every=2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="(peft|trl|torch)")
        trainer.train()
    assert any("ogpsa/tax_rate" in line for line in trainer.state.log_history)
    with pytest.raises(Unsupported, match=r"nspo holds whole weights .* only an adapter is trained; train all weights"):
        attach(built(), NSPO(prompts=PROMPTS))


@pytest.mark.parametrize(
    ("method", "context", "message"),
    [
        (OGPSA(), Context("dpo", 9), r"ogpsa needs reference_sets: give them, as OGPSA\(reference_sets=…\)"),
        (NSPO(), Context("dpo", 9), r"nspo needs prompts: give them, as NSPO\(prompts=…\)"),
        (
            NSPO(every=9, prompts=PROMPTS),
            Context("dpo", 9),
            "nspo would project after the last step only: every is 9, training has 9 steps",
        ),
        (OGPSA(reference_sets=SETS), Context(None, None), "ogpsa acts during training, and given checkpoints are not"),
        (NSPO(prompts=PROMPTS), Context("dpo", 9, backend="deepspeed"), "nspo cannot act under deepspeed"),
        (
            OGPSA(loss=len),
            Context("dpo", 9, frozenset({"reference_sets"})),
            "ogpsa with a loss of your own needs batches",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Method) else "",
)
def test_where_they_cannot_work_they_say_so(method: Method, context: Context, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        method.check(context)


def test_what_they_need_is_given_by_a_study_and_not_set_in_it() -> None:
    OGPSA().check(Context("dpo", 9, frozenset({"reference_sets"})))
    NSPO().check(Context("dpo", 9, frozenset({"general_prompts"})))
    NSPO(every=1).check(Context("dpo", 1, frozenset({"general_prompts"})))
    assert OGPSA(reference_sets=SETS).needed == NSPO(prompts=PROMPTS).needed == frozenset()
    assert OGPSA(reference_sets=SETS).settings() == OGPSA().settings()
    for name, key, where in (
        ("ogpsa", "reference_sets", "data.reference_sets"),
        ("nspo", "prompts", "data.general_prompts"),
    ):
        with pytest.raises(SpecError, match=f"method {name} has no setting '{key}'; a study's are in {where}"):
            methods.build(name, {key: []})
    with pytest.raises(SpecError, match=r"method ogpsa.loss: should be 'ce' or 'preference', got 'mse'"):
        methods.build("ogpsa", {"loss": "mse"})
    with pytest.raises(SpecError, match=r"method nspo: value must be above 0 and below 1: a share of the largest"):
        methods.build("nspo", {"threshold": "relative", "value": 3})


def test_a_row_acts_at_the_site_that_is_chosen() -> None:
    assert OGPSA().acts == {"gradient"}
    assert OGPSA(site="update").acts == {"update"}
    assert {site: NSPO(site=site).acts for site in ("gradient", "update", "displacement")} == {
        site: {site} for site in ("gradient", "update", "displacement")
    }
