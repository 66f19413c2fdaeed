"""LoRA as a baseline: what is trained, what is measured and saved of it, what it does not combine with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from test_attach import dpo
from test_laws import KilledError, run
from tiny import build_model_dir

from untaxed.callbacks import EMA, ElasticReset, SyncReference
from untaxed.checkpoints import load_model
from untaxed.errors import SpecError, Unsupported
from untaxed.methods import build
from untaxed.objectives import KLLoss
from untaxed.optim import L2, LoRA, OnDARE
from untaxed.sites import Context
from untaxed.studies.arms import check_arms, plan_arms
from untaxed.training import Merged, Task, attach, make_trainer
from untaxed.weights import same, trainable

SMALL = LoRA(rank=2, alpha=8.0, learning_rate=3e-3)
NARROW = LoRA(rank=1, alpha=8.0, targets=("q_proj", "down_proj"), learning_rate=3e-3)


@pytest.mark.parametrize("name", ["dpo", "rloo"])
def test_only_the_adapter_moves_and_what_is_shown_is_merged(tiny_task: Task, tmp_path: Path, name: str) -> None:
    trainer = make_trainer(name, {"max_steps": 2}, task=tiny_task, seed=0, output_dir=tmp_path, methods=[SMALL])
    attach(trainer, SMALL)
    initial = load_model(tiny_task.initial)
    merged = Merged(lambda: load_model(tiny_task.initial))
    ids = torch.tensor([[1, 5, 9, 11]])
    assert same(dict(merged(trainer.model).named_parameters()), dict(initial.named_parameters()))  # B is 0
    assert trainer.ref_model is None
    assert trainer.args.learning_rate == 3e-3
    trainer.train()
    policy = {name: tensor.clone() for name, tensor in trainable(trainer.model).items()}
    plain = merged(trainer.model)
    assert set(policy) == {name for name in policy if "lora_" in name}
    assert same(policy, dict(trainable(trainer.model)))
    trainer.model.eval()
    torch.testing.assert_close(plain(ids).logits, trainer.model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    moved = {name for name, tensor in plain.named_parameters() if not torch.equal(tensor, initial.get_parameter(name))}
    assert moved == {name for name, _ in plain.named_parameters() if "proj" in name}
    for name in moved:
        change = plain.get_parameter(name) - initial.get_parameter(name)
        assert torch.linalg.matrix_rank(change, rtol=1e-3) <= 2


def test_a_model_without_an_adapter_is_shown_as_it_is(tiny_task: Task) -> None:
    model = load_model(tiny_task.initial)
    assert Merged(lambda: pytest.fail("nothing is to be loaded"))(model) is model


def test_two_seeded_runs_agree_and_a_resume_is_bit_identical(tiny_task: Task, tmp_path: Path) -> None:
    also = [ElasticReset(decay=0.6, reset_every=2), L2(strength=10.0)]
    options: dict[str, Any] = {"resume_dir": tmp_path / "resume", "checkpoint_every": 2}
    adapter, prompts = NARROW, KLLoss(prompts=tiny_task.prompts)
    straight, _ = run(tiny_task, "dpo", adapter, prompts, *also, folder=tmp_path)
    other, _ = run(tiny_task, "dpo", adapter, prompts, *also, folder=tmp_path, seed=1)
    assert not same(straight, other)

    def kill(moment: Any) -> None:
        if moment.step >= 5:
            raise KilledError

    with pytest.raises(KilledError):
        run(tiny_task, "dpo", adapter, prompts, *also, folder=tmp_path, observe=kill, **options)
    resumed, _ = run(tiny_task, "dpo", adapter, prompts, *also, folder=tmp_path, **options)
    assert same(straight, resumed)


def test_it_works_beside_averages_and_references(tiny_task: Task, tmp_path: Path) -> None:
    plain, _ = run(tiny_task, "dpo", SMALL, folder=tmp_path)
    ends, _ = run(tiny_task, "dpo", SMALL, EMA(decay=0.5), SyncReference(share=1.0, sync_every=2), folder=tmp_path)
    own = {name: tensor for name, tensor in ends.items() if ".ref." not in name}
    assert own.keys() == plain.keys()
    assert not same(plain, own)


def test_what_does_not_combine_is_refused_with_the_reason(tiny_task: Task, tmp_path: Path) -> None:
    merging = OnDARE(density=0.5, merge_weight=0.1)
    with pytest.raises(
        Unsupported, match="ondare merges with the delta of full weights, and only an adapter is trained"
    ):
        run(tiny_task, "dpo", SMALL, merging, folder=tmp_path)
    arms = plan_arms([[{"lora": {}}, {"ondare": {"density": 0.5, "merge_weight": 0.1}}]])
    context = Context("dpo", 10, given=frozenset({"pretrained"}))
    with pytest.raises(
        Unsupported, match="ondare merges with the delta of full weights, and only an adapter is trained"
    ):
        check_arms(arms, context)
    check_arms(plan_arms([{"lora": {}}, {"ondare": {"density": 0.5, "merge_weight": 0.1}}]), context)
    with pytest.raises(SpecError, match="lora acts during training"):
        check_arms(plan_arms([{"lora": {}}]), Context(None, None))
    with pytest.raises(Unsupported, match="lora and lora each decide what is trained"):
        run(tiny_task, "dpo", SMALL, LoRA(), folder=tmp_path)


def test_attach_wants_it_built_in(tiny_task: Task, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"built: give it peft_config=LoraConfig\(r=16, lora_alpha=16.0, target_mod"):
        attach(dpo(tiny_task, tmp_path), LoRA())
    trainer = dpo(tiny_task, tmp_path, lora=True)  # rank 2, alpha 8, q_proj and v_proj
    attach(trainer, LoRA(rank=2, alpha=8.0, targets=("v_proj", "q_proj")))
    with pytest.raises(Unsupported, match="lora is decided when a trainer is built"):
        attach(trainer, LoRA(rank=2, alpha=8.0, targets=("v_proj",)))


def test_an_adapter_on_tied_weights_is_refused(tiny_task: Task, tmp_path: Path) -> None:
    tied = dataclasses.replace(tiny_task, initial=build_model_dir(tmp_path / "tied", tied=True))
    with pytest.raises(Unsupported, match=r"lora cannot be merged on 'embed_tokens': .* are one tensor"):
        run(tied, "dpo", LoRA(targets=("embed_tokens",)), folder=tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be a whole number, at least 1, got 0"),
        ({"alpha": 0}, "alpha must be above 0, got 0"),
        ({"learning_rate": -1}, "learning_rate must be above 0, got -1"),
        ({"targets": []}, "targets must be 'all-linear' or a list of layers' names"),
        ({"targets": "mlp"}, "lora.targets"),
    ],
)
def test_wrong_settings_are_spec_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build("lora", settings)
