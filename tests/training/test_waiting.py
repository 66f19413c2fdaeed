"""Where samples of the policy wait to be learned from: saves are held, and what can never come is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from test_reference import build, weights

from untaxed.callbacks import BEMA, ElasticReset, SyncReference
from untaxed.errors import Unsupported
from untaxed.method import Method
from untaxed.sites import Context
from untaxed.training import Task, attach
from untaxed.training.arguments import check_arguments, free_every
from untaxed.training.host import free_every as of_trainer
from untaxed.weights import same

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
RESET = ElasticReset(decay=0.6, reset_every=3)


def saved(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_a_save_waits_until_no_samples_are_left_and_says_so_once(
    tiny_task: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    options = {"num_iterations": 2, "max_steps": 7, "save_strategy": "steps", "save_steps": 1}
    straight = build(name, tiny_task, tmp_path, **options)
    attach(straight, RESET)
    with caplog.at_level(logging.WARNING, logger="untaxed"):
        straight.train()
    assert saved(tmp_path) == [2, 4, 6, 7]  # the last step's is nothing to go on from, and the whole of what was asked
    said = [record.getMessage() for record in caplog.records if "checkpoint" in record.getMessage()]
    assert said == [
        "a checkpoint is due at step 1, where samples of the policy wait to be learned from: it comes at the next step "
        "where none do, here and later on"
    ]
    for stop in (2, 4):
        resumed = build(name, tiny_task, tmp_path, **{**options, "save_strategy": "no"})
        attach(resumed, RESET)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
        assert same(weights(resumed), weights(straight)), stop


def test_an_epochs_save_waits_too(tiny_task: Task, tmp_path: Path) -> None:
    trainer = build("rloo", tiny_task, tmp_path, num_iterations=5, max_steps=10)
    attach(trainer, SyncReference(sync_every=2))
    hooks: Any = trainer.callback_handler.callbacks[-1]
    trainer.state.max_steps = 10
    assert not held(hooks, trainer, step=3, due=True)
    assert not held(hooks, trainer, step=4, due=False)
    assert held(hooks, trainer, step=5, due=False)
    assert not held(hooks, trainer, step=6, due=False)


def held(hooks: Any, trainer: Any, *, step: int, due: bool) -> bool:
    """Whether an epoch that ends at a step is saved there."""
    trainer._step = trainer.state.global_step = step
    trainer.control.should_save = due
    hooks.on_epoch_end(trainer.args, trainer.state, trainer.control)
    return bool(trainer.control.should_save)


NEVER: list[tuple[Method, str]] = [
    (
        ElasticReset(decay=0.6, reset_every=5),
        "would never reset: reset_every is 5, training has 6 steps, and none comes",
    ),
    (SyncReference(sync_every=5), "would never change the reference: sync_every is 5, training has 6 steps, and no"),
    (BEMA(update_every=5, into="reference"), r"would never change the reference: start_after \+ update_every is 5"),
]


@pytest.mark.parametrize(("method", "message"), NEVER, ids=lambda value: getattr(value, "name", ""))
def test_what_can_come_at_no_free_step_is_refused(
    tiny_task: Task, tmp_path: Path, method: Method, message: str
) -> None:
    trainer = build("grpo", tiny_task, tmp_path, num_iterations=4, max_steps=6)
    with pytest.raises(Unsupported, match=message + r".*\(all steps but multiples of 4\)"):
        attach(trainer, method)
    method.check(Context("grpo", 6))  # where no samples wait
    method.check(Context("grpo", 9, free_every=4))


def test_a_first_reset_that_is_not_skipped_counts() -> None:
    rule = ElasticReset(decay=0.6, reset_every=100, skip_first=False)
    rule.check(Context("dpo", 6))
    with pytest.raises(Unsupported, match=r"would never reset: update_every is 1, training has 1 .*lower update_every"):
        rule.check(Context("dpo", 1))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, 1),
        ({"num_iterations": 3}, 3),
        ({"steps_per_generation": 8, "micro_batch_size": 2}, 4),
        ({"generation_batch_size": 16, "num_iterations": 2}, 8),
    ],
)
def test_free_steps_are_known_before_there_is_a_trainer(
    tiny_task: Task, tmp_path: Path, arguments: dict[str, Any], expected: int
) -> None:
    from untaxed.training import make_trainer

    given = {"max_steps": 20, "batch_size": 4, "num_generations": 2, "max_completion_length": 4, **arguments}
    checked = check_arguments("rloo", {"learning_rate": 1e-3, **given})
    assert free_every("rloo", checked) == expected
    assert of_trainer(make_trainer("rloo", given, task=tiny_task, seed=0, output_dir=tmp_path)) == expected
    assert free_every("dpo", {}) == 1
