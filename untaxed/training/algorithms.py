"""The algorithms' table: which TRL trainer does the work, what it learns from, how its batch is counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..errors import SpecError, nearest, require


@dataclass(frozen=True)
class Algorithm:
    """One row.

    Attributes:
        name: The name in specs.
        trainer: TRL's trainer class.
        config: Its config class.
        on_policy: Samples its own completions of the task's prompts and asks the task's reward; else it learns from
            the task's preferences.
        takes_apart: Learns from single completions with a label, two of every pair.
        fixed: Config values that make the algorithm what it is.
        defaults: Arguments that hold unless the task or the spec says otherwise.
    """

    name: str
    trainer: str
    config: str
    on_policy: bool = False
    takes_apart: bool = False
    fixed: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType(dict(DEFAULTS)))

    @property
    def item(self) -> str:
        """What `batch_size` counts."""
        return "completions" if self.on_policy else "pairs"

    def config_class(self) -> type:
        return getattr(require("trl", extra="train"), self.config)

    def trainer_class(self) -> type:
        return getattr(require("trl", extra="train"), self.trainer)


DEFAULTS: dict[str, Any] = {"max_steps": 200, "learning_rate": 1e-6, "batch_size": 32}

ALGORITHMS: dict[str, Algorithm] = {
    row.name: row
    for row in (
        Algorithm("dpo", "DPOTrainer", "DPOConfig"),
        Algorithm("ipo", "DPOTrainer", "DPOConfig", fixed={"loss_type": ["ipo"]}),
        Algorithm("kto", "KTOTrainer", "KTOConfig", takes_apart=True),
        Algorithm("rloo", "RLOOTrainer", "RLOOConfig", on_policy=True),
        Algorithm("grpo", "GRPOTrainer", "GRPOConfig", on_policy=True),
    )
}


def algorithm(name: str) -> Algorithm:
    """The row of an algorithm; an unknown name is a `SpecError` that says the nearest."""
    if name not in ALGORITHMS:
        raise SpecError(f"unknown algorithm {name!r}{nearest(str(name), ALGORITHMS)}")
    return ALGORITHMS[name]
