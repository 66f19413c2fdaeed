"""What methods between steps may do to a running trainer: write to its log, lower its learning rate, end it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoints import no_bars

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


def save_policy(trainer: Trainer, folder: Path) -> None:
    """Writes the policy with its tokenizer into a folder; every process calls it, the first one writes.

    Under FSDP2 the trainer's own `save_model` writes nothing where state is saved in shards, as by default; here the
    tensors are put together one by one, in the first process's memory.
    """
    with no_bars():
        if not any(hasattr(parameter, "full_tensor") for parameter in trainer.model.parameters()):  # type: ignore[union-attr]
            trainer.save_model(str(folder))
            return
        model: Any = trainer.accelerator.unwrap_model(trainer.model)
        whole = {}
        for name, tensor in model.state_dict().items():
            full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            if trainer.args.should_save:
                whole[name] = full.cpu()
        if trainer.args.should_save:
            model.save_pretrained(folder, state_dict=whole)
            trainer.processing_class.save_pretrained(folder)  # type: ignore[union-attr]
    trainer.accelerator.wait_for_everyone()
