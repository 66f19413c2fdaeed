"""Rows and rewards on their way into a trainer: checked first, so that a mistake names its row or its step."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import DataError, RunFailed, nearest, short
from ..measuring.rewards import rewards_of
from ..rows import check_text
from .task import Reward

COLUMNS = ("prompt", "chosen", "rejected")


def check_preferences(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Checks preference rows and keeps their three columns.

    Raises:
        DataError: There are none, or `pair_check` refuses one; rows are counted from 1.
    """
    if not len(rows):
        raise DataError("the preferences are empty; at least one row with prompt, chosen and rejected is needed")
    check = pair_check()
    for number, row in enumerate(rows, start=1):
        try:
            check(row)
        except ValueError as error:
            raise DataError(f"preferences row {number}: {error}") from None
    return [{column: row[column] for column in COLUMNS} for row in rows]


def pair_check() -> Callable[[Mapping[str, Any]], None]:
    """A check to be called with every row of one set of pairs.

    It raises `ValueError` for a row that lacks a column, has one that is null, empty or neither a text nor a list of
    messages, prefers a text to itself, or holds messages where the rows before it hold texts.
    """
    kinds: list[str] = []

    def check(row: Mapping[str, Any]) -> None:
        for column in COLUMNS:
            if column not in row:
                raise ValueError(f"no column {column!r} (`columns: {{{column}: …}}` renames){nearest(column, row)}")
            kinds[1:] = [_kind(column, row[column])]
            if len(set(kinds)) > 1:
                raise ValueError(f"{column} is {kinds[1]} where others are {kinds[0]}; write all in one way")
        if empty := [column for column in COLUMNS[1:] if not row[column]]:
            raise ValueError(f"{empty[0]} is empty; give a text, or leave the row out")
        if row["chosen"] == row["rejected"]:
            raise ValueError("chosen equals rejected, which teaches nothing; leave the row out")

    return check


def holds_messages(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether pairs are conversations, which only a chat template makes texts of."""
    return bool(rows) and isinstance(rows[0].get("prompt"), list)


def _kind(column: str, value: Any) -> str:
    """What a value of a pair is, in words."""
    if isinstance(value, str):
        check_text(column, value)
        return "a text"
    if isinstance(value, list) and value and all(map(_is_message, value)):
        for message in value:
            check_text(column, message["content"])
        return "a list of messages"
    what = "null" if value is None else f"{short(value)}, which is {type(value).__name__}"
    raise ValueError(
        f"{column} is {what}; expected a text, or a list of messages {{role: …, content: …}} with texts in them"
    )


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(key), str) for key in ("role", "content"))


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
        try:
            values: list[float] = rewards_of("proxy", reward, prompts, completions).tolist()
        except DataError as error:
            raise RunFailed(f"at step {step()}: {error}") from error
        return values

    return proxy
