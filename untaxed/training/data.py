"""Rows and rewards on their way into a trainer: checked first, so that a mistake names its row or its step."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import DataError, RunFailed
from .task import Reward

COLUMNS = ("prompt", "chosen", "rejected")


def check_preferences(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Checks preference rows and keeps their three columns.

    Raises:
        DataError: There are none, or a row lacks a column or prefers a text to itself; rows are counted from 1.
    """
    if not len(rows):
        raise DataError("the preferences are empty; at least one row with prompt, chosen and rejected is needed")
    for number, row in enumerate(rows, start=1):
        if absent := [column for column in COLUMNS if row.get(column) is None]:
            raise DataError(f"preferences row {number} has no {absent[0]!r}; its columns: {', '.join(sorted(row))}")
        if not row["chosen"] or not row["rejected"]:
            raise DataError(f"preferences row {number} has an empty {'rejected' if row['chosen'] else 'chosen'}")
        if row["chosen"] == row["rejected"]:
            raise DataError(f"preferences row {number} has chosen equal to rejected, which teaches nothing")
    return [{column: row[column] for column in COLUMNS} for row in rows]


def take_apart(pairs: Sequence[Mapping[str, Any]], *, seed: int) -> list[dict[str, Any]]:
    """Makes two labelled completions of every pair, in an order that the seed decides.

    TRL's KTO reads its rows in their order (it pairs neighbours for its KL term), and takes a thousand pairs apart into
    all the chosen and then all the rejected: given the pairs, it would learn from batches of one label.
    """
    rows = [
        {"prompt": pair["prompt"], "completion": pair[column], "label": column == "chosen"}
        for pair in pairs
        for column in ("chosen", "rejected")
    ]
    random.Random(seed).shuffle(rows)
    return rows


def check_prompts(prompts: Sequence[str], *, needed: int) -> list[dict[str, str]]:
    """Checks prompts to sample from; fewer than one batch of them would be dropped by the sampler, and nothing trained.

    Raises:
        DataError: Too few, or one that is empty or no text.
    """
    if len(prompts) < needed:
        raise DataError(f"{len(prompts)} prompts are too few: one batch of generations takes {needed} different ones")
    for number, prompt in enumerate(prompts, start=1):
        if not isinstance(prompt, str) or not prompt:
            raise DataError(f"prompt {number} is {'empty' if prompt == '' else 'not a text'}")
    return [{"prompt": prompt} for prompt in prompts]


def as_reward_function(reward: Reward, step: Callable[[], int]) -> Callable[..., list[float]]:
    """Wraps a task's reward as TRL calls it, and stops the run at the first answer that is no reward.

    Args:
        reward: Maps prompts and completions to one finite number each.
        step: Says which optimizer step is being taken.
    """

    def proxy(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        values = [float(value) for value in reward(prompts, completions)]
        if len(values) != len(completions):
            raise RunFailed(
                f"the reward returned {len(values)} numbers for {len(completions)} completions at step {step()}"
            )
        for value, completion in zip(values, completions, strict=True):
            if not math.isfinite(value):
                raise RunFailed(f"the reward returned {value} at step {step()}, for the completion {completion[:80]!r}")
        return values

    return proxy
