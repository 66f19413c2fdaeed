"""What a trainer shows to the methods that act between its steps: a `Host` made of its own parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..method import Host, Setting
from .reference import reference_tensors

if TYPE_CHECKING:
    from transformers import Trainer


def host_of(trainer: Trainer) -> Host:
    """The parts of a trainer that methods may touch; looked up when they are used, since trainers replace them."""
    return Host(
        optimizer=trainer.optimizer,
        reference=lambda: reference_tensors(trainer),
        beta=_beta(trainer) if isinstance(getattr(trainer, "beta", None), float | int) else None,
        kl=lambda: _last_kl(trainer),
        log=lambda values: trainer.log(dict(values)),
    )


def _beta(trainer: Any) -> Setting:
    def put(value: float) -> None:
        trainer.beta = value

    return Setting(lambda: float(trainer.beta), put)


def _last_kl(trainer: Any) -> float | None:
    metrics: Mapping[str, Any] = getattr(trainer, "_metrics", {})
    values = metrics.get("train", {}).get("kl")
    return float(values[-1]) if values else None
