"""What a task gives to the methods that need it: the SFT delta, prompts, reference sets, texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..method import Method
from ..optim import sft_delta
from ..sites import INPUTS, Need
from .task import Task

FIELDS: Mapping[Need, str] = {**INPUTS, "prompts": "prompts"}  # the last are the alignment's own


def with_inputs(methods: Sequence[Method], task: Task) -> list[Method]:
    """The methods, each with what it needs of the task."""
    needed = {need for method in methods for need in method.needed}
    given: dict[Need, Any] = {"prompts": task.prompts, **task.rows}
    if "pretrained" in needed:
        assert task.pretrained is not None  # the methods' own check
        given["pretrained"] = sft_delta(task.initial, task.pretrained)
    return [
        replace(method, **{field: given[need] for need, field in FIELDS.items() if need in method.needed})
        for method in methods
    ]
