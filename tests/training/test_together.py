"""Methods of one training: which contradict each other, and that the others keep what both promise."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_attach import dpo
from tiny import WORDS

from untaxed import methods
from untaxed.callbacks import BEMA, EMA, ElasticReset, ResetToInitial
from untaxed.errors import DataError, RunFailed, SpecError, Unsupported
from untaxed.method import Method
from untaxed.objectives import RPO
from untaxed.optim import L1, L2, LoRA, OnDARE, UpdateDropout
from untaxed.projections import NSPO, OGPSA
from untaxed.together import check_overridden, check_together
from untaxed.training import Task, attach, make_trainer
from untaxed.weights import same, trainable

PROMPTS = [" ".join(WORDS[(i * j) % 28] for j in range(1, 4 + i % 5)) for i in range(40)]
FREE: dict[str, Any] = {"threshold": "free_share", "value": 0.3, "prompts": PROMPTS}
BEHIND = "put {0} behind {1}"
PROTECTING: dict[str, dict[str, Any]] = {
    "ogpsa": {}, "nspo": {}, "l1": {"strength": 0.1}, "l2": {"strength": 1.0}, "kl_loss": {}, "distill": {}, "rpo": {},
    "replay": {}, "lora": {},
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "ondare": {"density": 0.5, "merge_weight": 0.1}, "onties": {"density": 0.5, "merge_weight": 0.1},
    "online": {"density": 0.5, "merge_weight": 0.1}, "elastic_reset": {"decay": 0.6, "reset_every": 2},
    "reset_to_initial": {"reset_every": 2}, "drift_triggered_reset": {"forward_kl": 0.1, "decay": 0.6},
    "ema": {"decay": 0.6},
}  # fmt: skip


@pytest.mark.parametrize(("first", "second"), [*itertools.product(PROTECTING, OTHERS)])
def test_what_protects_goes_with_online_merging_resets_and_averages(first: str, second: str) -> None:
    """In either order; what LoRA refuses it refuses by itself (`check`), whoever builds the adapter."""
    pair = [methods.build(first, PROTECTING[first]), methods.build(second, OTHERS[second])]
    check_together(pair)
    check_together(pair[::-1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([NSPO(), L1(strength=0.1)], BEHIND.format("nspo", "l1")),
        ([NSPO(site="update"), OnDARE(density=0.5, merge_weight=0.1)], BEHIND.format("nspo", "ondare")),
        ([NSPO(site="update"), L1(strength=0.1)], "give nspo the site 'displacement' and put it behind l1"),
        ([L1(strength=0.1), NSPO(site="update")], "give nspo the site 'displacement' and put it behind l1"),
        ([OGPSA(site="update"), UpdateDropout(density=0.5)], BEHIND.format("ogpsa", "update_dropout")),
        ([OGPSA(), NSPO(site="gradient")], "both promise something exact of the gradient"),
        ([NSPO(site="gradient"), OGPSA()], "both promise something exact of the gradient"),
        ([NSPO(site="update"), OGPSA(site="update")], "both promise something exact of the update"),
        ([ElasticReset(decay=0.6, reset_every=2), ResetToInitial(reset_every=2)], "both replace the policy"),
        ([EMA(decay=0.6), BEMA()], "ema and bema: two averages go along"),
        ([LoRA(), LoRA(rank=2)], "lora and lora each decide what is trained"),
        ([RPO(), RPO(eta=0.5)], "rpo sets loss_weights to .* keep one of them"),
    ],
)
def test_what_contradicts_itself_is_refused_with_the_way_out(given: list[Method], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        check_together(given)


@pytest.mark.parametrize(
    "given",
    [
        [L1(strength=0.1), NSPO()],
        [NSPO(), L2(strength=1.0)],
        [NSPO(site="update"), L2(strength=1.0)],
        [OGPSA(), NSPO()],
        [OnDARE(density=0.5, merge_weight=0.1), NSPO(site="update")],
        [NSPO(), OnDARE(density=0.5, merge_weight=0.1), EMA(decay=0.6)],
    ],
    ids=lambda given: "-".join(one.name for one in given),
)
def test_the_ways_out_lead_out(given: list[Method]) -> None:
    check_together(given)


@pytest.fixture(scope="module")
def delta(tiny_initial: Path) -> dict[str, torch.Tensor]:
    """A delta that has parts along everything."""
    from untaxed.checkpoints import load_weights

    generator = torch.Generator().manual_seed(3)
    tensors = {name: torch.as_tensor(value) for name, value in load_weights(tiny_initial).items()}
    return {name: torch.randn(one.shape, generator=generator) for name, one in tensors.items()}


@pytest.mark.parametrize("case", ["ondare", "ondare, seldom", "elastic_reset", "ema", "l1", "alone"])
def test_what_is_measured_beside_others_keeps_what_nspo_protects(
    tiny_task: Task, tmp_path: Path, delta: Any, case: str
) -> None:
    """Between projections too, of averages that saw the policy there, and of a merge that the end cuts short."""
    push = OnDARE(density=0.5, merge_weight=1e-3, delta=delta, merge_every=3 if "seldom" in case else 1)
    given: dict[str, Sequence[Method]] = {
        "ondare": [NSPO(every=2, **FREE), push],
        "ondare, seldom": [push, NSPO(site="update", **FREE)],
        "elastic_reset": [NSPO(every=3, **FREE), ElasticReset(decay=0.6, reset_every=3)],
        "ema": [NSPO(every=3, **FREE), EMA(decay=0.6)],
        "l1": [L1(strength=0.05), NSPO(every=2, **FREE)],
        "alone": [NSPO(every=3, **FREE)],
    }
    trainer = dpo(tiny_task, tmp_path, max_steps=4)
    before = {name: tensor.clone() for name, tensor in trainable(trainer.model).items()}
    attached = attach(trainer, *given[case])
    leaks: list[float] = []
    policies: list[dict[str, torch.Tensor]] = []

    def watch(step: int, **_: Any) -> None:
        own = {name: tensor.clone() for name, tensor in trainable(trainer.model).items()}
        with attached.shown() as model:
            now = trainable(model)
            [found] = [rule.subspaces for rule in attached.in_step.optimizer.rules if hasattr(rule, "subspaces")]
            for name, sub in found.items():
                moved = now[name] - before[name]
                leaks.append(float((moved - sub.remove(moved)).norm() / moved.norm().clamp(min=1e-6)))
        assert same(own, trainable(trainer.model))  # put back, bit for bit
        policies.append(own)

    attached.observer = watch
    trainer.train()
    assert len(policies) == 4 + (case == "elastic_reset")
    assert max(leaks) < 1e-4


def test_showing_changes_nothing(tiny_task: Task, tmp_path: Path) -> None:
    ends = []
    for shows in (False, True):
        trainer = dpo(tiny_task, tmp_path, max_steps=4)
        attached = attach(trainer, NSPO(every=3, **FREE), ElasticReset(decay=0.6, reset_every=2))

        def look(step: int, shown: Any = attached.shown, **_: Any) -> None:
            with shown():
                pass

        attached.observer = look if shows else None
        trainer.train()
        ends.append({name: tensor.clone() for name, tensor in trainable(trainer.model).items()})
    assert same(*ends)


def test_an_argument_of_the_algorithm_is_not_replaced_silently(tiny_task: Task, tmp_path: Path) -> None:
    message = r"rpo sets loss_type to \['sigmoid', 'sft'\], and the algorithm is given loss_type \['hinge'\]; leave"
    with pytest.raises(Unsupported, match=message):
        make_trainer(
            "dpo", {"loss_type": ["hinge"]}, task=tiny_task, seed=0, output_dir=tmp_path, methods=[RPO(eta=0.5)]
        )
    kl = methods.build("kl", {"beta": 0.3})
    check_overridden([kl, LoRA(learning_rate=1e-3)], {"beta": 0.1, "learning_rate": 1e-6})  # settings of their own


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ["*.up_prj"]}, r"layers: no linear layer is called '\*.up_prj'; did you mean '\*.up_proj'"),
        (
            {"threshold": "rank", "value": 40},
            "rank 40 is asked for, and the layer '.*q_proj' has 32",
        ),
    ],
)
def test_layers_that_are_not_there_are_known_when_it_is_attached(
    tiny_task: Task, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        attach(dpo(tiny_task, tmp_path), NSPO(prompts=PROMPTS, every=2, **settings))


def test_reference_losses_of_infinite_gradient_stop_the_run_before_a_step(tiny_task: Task, tmp_path: Path) -> None:
    def root_of_zero(model: Any, batch: torch.Tensor) -> torch.Tensor:
        return (model(input_ids=batch).logits.sum() * 0).sqrt()

    trainer = dpo(tiny_task, tmp_path)
    before = {name: tensor.clone() for name, tensor in trainable(trainer.model).items()}
    attach(trainer, OGPSA(reference_sets={"own": [torch.tensor([[4, 5]])]}, loss=root_of_zero))
    with pytest.raises(
        RunFailed, match=r"the gradient of reference set 'own' is not finite .* at step 1, and its loss is 0"
    ):
        trainer.train()
    assert same(before, trainable(trainer.model))


def test_more_that_is_wrong_with_what_they_are_given(tiny_task: Task, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="reference set 'a' must be a list of rows, got a dict"):
        OGPSA(reference_sets={"a": {"prompt": ["w1"], "completion": ["w2"]}})
    with pytest.raises(DataError, match="general prompt 1 is empty; leave it out"):
        NSPO(prompts=["w1", " "])
    with pytest.raises(ValueError, match="tolerance must be a finite number, got 'x'"):
        OGPSA(tolerance="x")  # type: ignore[arg-type]
    for name, way in (("best_of_n", {"n": 2}), ("logit_mixing", {"initial_share": 0.5})):
        with pytest.raises(Unsupported, match=f"{name} acts while models write .* it is an arm of studies"):
            attach(dpo(tiny_task, tmp_path), methods.build(name, way))
    with pytest.raises(Unsupported, match=r"loss_type=\['sigmoid', 'sft'\], loss_weights=\[1.0, 0.3\]"):
        attach(dpo(tiny_task, tmp_path), RPO())


def test_reference_rows_are_cut_at_the_models_context(tiny_task: Task, tmp_path: Path) -> None:
    trainer = dpo(tiny_task, tmp_path, max_steps=1)
    attached = attach(trainer, OGPSA(reference_sets={"long": [" ".join(WORDS * 4)]}))  # 112 words, 64 positions
    trainer.train()
    [rule] = attached.in_step.optimizer.rules
    assert rule._sets[0].batches[0].input_ids.shape[1] == 63  # the last token is only predicted
