"""A policy trained under autocast is measured as the models are that it is compared with."""

from __future__ import annotations

from pathlib import Path

import torch

from untaxed import training
from untaxed.checkpoints import load_model
from untaxed.training import Moment, Task


def test_autocast_of_training_is_not_part_of_measuring(tiny_task: Task, tmp_path: Path) -> None:
    trainer = training.make_trainer("dpo", {"bf16": True}, task=tiny_task, seed=0, output_dir=tmp_path)
    ids = torch.arange(4, 20)[None]
    seen = []

    def observe(moment: Moment) -> None:
        copy = load_model(tiny_task.initial)
        copy.load_state_dict(moment.model.state_dict())
        with torch.no_grad():
            seen.append(torch.equal(moment.model(ids).logits, copy(ids).logits))

    training.train(trainer, every=3, observe=observe)
    assert seen == [True, True]
    with torch.no_grad():  # the trainer's own wrapper is back: bfloat16 rounds
        copy = load_model(tiny_task.initial)
        copy.load_state_dict(trainer.model.state_dict())
        assert not torch.equal(trainer.model(ids).logits, copy(ids).logits)
