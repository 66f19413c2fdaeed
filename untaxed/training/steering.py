"""What methods between steps may do to a running trainer: write to its log, lower its learning rate, end it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import Trainer


def log_beside(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Takes values to the trainer's log, and leaves the trainer's own next line what it would have been.

    Every line takes along what TRL has gathered since the last one (and RLOO's and GRPO's samples, printed), and any
    line tells transformers that this step has been logged.
    """
    with _own_line_kept(trainer):
        trainer.log(dict(values))


@contextmanager
def _own_line_kept(trainer: Any) -> Iterator[None]:
    hidden = {"_metrics": {"train": {}, "eval": {}}, "log_completions": False}
    kept = {name: getattr(trainer, name) for name in hidden if hasattr(trainer, name)}
    due = trainer.control.should_log
    for name in kept:
        setattr(trainer, name, hidden[name])
    try:
        yield
    finally:
        trainer.control.should_log = due
        for name, value in kept.items():
            setattr(trainer, name, value)


def scale_lr(trainer: Trainer, factor: float) -> None:
    """Multiplies the learning rate of every group, now and in what its schedule computes from here on."""
    for group in trainer.optimizer.param_groups:  # type: ignore[union-attr]
        for key in {"lr", "initial_lr", "max_lr", "min_lr"} & group.keys():  # the last two are OneCycleLR's
            if isinstance(group[key], torch.Tensor):
                group[key].mul_(factor)  # in place: a captured graph reads it
            else:
                group[key] *= factor
    for schedule in _schedules(trainer.lr_scheduler):
        for name in ("base_lrs", "max_lrs", "_last_lr"):
            if (rates := getattr(schedule, name, None)) is not None:
                setattr(schedule, name, [rate * factor for rate in rates])
        if (least := getattr(schedule, "eta_min", None)) is not None:  # where a cosine ends
            schedule.eta_min = least * factor


def _schedules(schedule: Any) -> Iterator[Any]:
    """A schedule and those inside it: accelerate wraps one, torch composes several."""
    if schedule is None:
        return
    yield schedule
    yield from _schedules(getattr(schedule, "scheduler", None))
    for inner in getattr(schedule, "_schedulers", ()):
        yield from _schedules(inner)


def stop(trainer: Trainer) -> None:
    """Ends the training after this step: it is logged, and saved where the trainer saves, and `train()` returns."""
    trainer.control.should_training_stop = True
