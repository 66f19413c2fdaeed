"""What a trainer shows to the methods that act between its steps: a `Host` made of its own parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..sites import Host, Setting
from .held_out import held_out
from .reference import reference_tensors
from .steering import log_beside, save_policy, scale_lr, stop

if TYPE_CHECKING:
    from transformers import Trainer


def host_of(
    trainer: Trainer,
    *,
    drift: Callable[[], Mapping[str, float]] | None = None,
    reset: Callable[[], None] | None = None,
) -> Host:
    """The parts of a trainer that methods may touch; looked up when they are used, since trainers replace them.

    Args:
        trainer: When training begins.
        drift: What the drift meter last read.
        reset: Asks the attached method that resets.
    """
    processing: Any = trainer.processing_class
    return Host(
        optimizer=trainer.optimizer,
        reference=lambda: reference_tensors(trainer),
        beta=_beta(trainer) if isinstance(getattr(trainer, "beta", None), float | int) else None,
        kl=_kl_of(trainer),
        drift=drift,
        log=lambda values: log_beside(trainer, values),
        tokenizer=getattr(processing, "tokenizer", processing),  # a processor's, of a model that also sees
        held_out=lambda: held_out(trainer),
        scale_lr=lambda factor: scale_lr(trainer, factor),
        stop=lambda: stop(trainer),
        reset=reset,
        save=lambda folder: save_policy(trainer, folder),
    )


def _beta(trainer: Any) -> Setting:
    def put(value: float) -> None:
        trainer.beta = value

    return Setting(lambda: float(trainer.beta), put)


def _kl_of(trainer: Any) -> Callable[[], float | None]:
    """Says what the trainer measured of its KL since it was asked last, on average; None where that is nothing.

    TRL gathers one number a generation (rloo) or a micro-batch (grpo) in a list, and begins a new list when it logs.
    """
    seen: list[float] = []
    count = 0

    def new() -> float | None:
        nonlocal seen, count
        values = getattr(trainer, "_metrics", {}).get("train", {}).get("kl") or []
        fresh = values[count:] if values is seen else values
        seen, count = values, len(values)
        return sum(map(float, fresh)) / len(fresh) if fresh else None

    return new
