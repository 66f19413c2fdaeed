"""What an alignment is about: the models it starts from, what it learns from, and what is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..measuring.suite import Reward, Suite


@dataclass(frozen=True)
class Task:
    """Everything that the arms of a study share.

    Attributes:
        initial: Directory of the model that alignment starts from, with its tokenizer.
        pretrained: Directory of the common ancestor, where a method needs it.
        preferences: Rows with ``prompt``, ``chosen`` and ``rejected`` (dpo, ipo, kto).
        prompts: What on-policy algorithms sample from (rloo, grpo).
        reward: The proxy reward that on-policy algorithms maximise.
        suite: What is measured, ``reward.proxy`` and ``reward.gold`` among it.
        arguments: Training arguments by algorithm name that hold for this task unless the spec says otherwise.
    """

    initial: Path
    suite: Suite
    pretrained: Path | None = None
    preferences: Sequence[Mapping[str, Any]] = ()
    prompts: Sequence[str] = ()
    reward: Reward | None = None
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
