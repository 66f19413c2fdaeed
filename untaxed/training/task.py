"""What an alignment is about: the models it starts from, what it learns from, and what is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..measuring.suite import Reward, Suite
from ..sites import Need

Row = Mapping[str, Any]


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
        general_prompts: Questions about anything but the alignment's subject, whose answers are to stay as they are.
        reference_sets: By ability, rows whose loss is not to rise: ``prompt`` and ``completion``, or ``text``, or
            ``prompt``, ``chosen`` and ``rejected``.
        replay: Texts of pretraining or SFT, to be read again during alignment.
    """

    initial: Path
    suite: Suite
    pretrained: Path | None = None
    preferences: Sequence[Row] = ()
    prompts: Sequence[str] = ()
    reward: Reward | None = None
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    general_prompts: Sequence[str] = ()
    reference_sets: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    replay: Sequence[str] = ()

    @property
    def given(self) -> frozenset[Need]:
        """What this task gives to the methods that need it."""
        there: dict[Need, Any] = {"pretrained": self.pretrained, **self.rows}
        return frozenset(need for need, value in there.items() if value)

    @property
    def rows(self) -> dict[Need, Any]:
        """The data for methods by the need that they meet."""
        return {"general_prompts": self.general_prompts, "reference_sets": self.reference_sets, "replay": self.replay}
