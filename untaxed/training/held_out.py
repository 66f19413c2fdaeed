"""The prompts that a trainer is evaluated on and not trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..callbacks._drift_settings import is_prompt
from ..callbacks._guards import say
from ..errors import Unsupported
from ..rows import subset

if TYPE_CHECKING:
    from transformers import Trainer

MOST = 64  # prompts
AT_ONCE = 1000  # rows that are read of an Arrow table


def held_out(trainer: Trainer) -> list[Any]:
    """As `find_held_out`; says in the log how many prompts were left out, and where nobody could tell."""
    prompts, trained_on = find_held_out(trainer)
    if trained_on is None:
        say("drift meter: train_dataset shows no prompts to compare with; none of eval_dataset's are left out")
    elif trained_on:
        say(f"drift meter: {trained_on} prompts of eval_dataset are in train_dataset, too, and are left out")
    return prompts


def find_held_out(trainer: Trainer) -> tuple[list[Any], int | None]:
    """Prompts of the trainer's ``eval_dataset``: of several sets the first that has prompts.

    Returns:
        At most 64 different ones, drawn by a hash of what they are and in the data's order, without those in the
        ``train_dataset``; and how many these were, None where the training set cannot be compared: it streams, runs
        code of its own for every row, or has no prompts.
    Raises:
        Unsupported: There is none, with both ways out.
    """
    found = next(filter(None, map(_by_key, _sets(trainer.eval_dataset))), {})
    if not found:
        raise Unsupported(
            "drift_meter has no prompts: the trainer has no eval_dataset that holds a column `prompt` and does not "
            "stream; build the trainer with one, or give DriftMeter(prompts=[…])"
        )
    trained = [_read(one) for one in _sets(trainer.train_dataset)]
    readable = [rows for rows in trained if rows is not None]
    both = found.keys() & {key for rows in readable for key in map(_key, rows) if key in found}
    kept = [prompt for key, prompt in found.items() if key not in both]
    if not kept:
        raise Unsupported(
            f"drift_meter has no prompts: all {len(found)} of eval_dataset are in train_dataset, too; build the "
            "trainer with an eval_dataset of others, or give DriftMeter(prompts=[…])"
        )
    drawn = subset([{"prompt": prompt} for prompt in kept], MOST)
    return [row["prompt"] for row in drawn], len(both) if len(readable) == len(trained) else None


def _sets(given: Any) -> list[Any]:
    """One data set or several by name as a list."""
    return [] if given is None else list(given.values()) if isinstance(given, Mapping) else [given]


def _by_key(dataset: Any) -> dict[str, Any]:
    """The different prompts of a data set by what is compared of them, in its order."""
    return {_key(prompt): prompt for prompt in map(_plain, _read(dataset) or ()) if is_prompt(prompt) and prompt}


def _read(dataset: Any) -> Iterable[Any] | None:
    """A data set's prompts, read without any code of its own; None where it shows none or streams."""
    if isinstance(dataset, Sequence) and not isinstance(dataset, str):
        plain = bool(dataset) and all(isinstance(row, Mapping) and "prompt" in row for row in dataset)
        return (row["prompt"] for row in dataset) if plain else None
    columns = getattr(dataset, "column_names", None)
    arrow = hasattr(dataset, "select_columns") and hasattr(dataset, "__len__")
    return _column(dataset) if arrow and "prompt" in (columns or ()) else None


def _column(dataset: Any) -> Iterator[Any]:
    for rows in dataset.select_columns("prompt").with_format(None).iter(AT_ONCE):
        yield from rows["prompt"]


def _plain(prompt: Any) -> Any:
    """A conversation without the empty fields that tables put in where another message has one."""
    if isinstance(prompt, str) or not is_prompt(prompt):
        return prompt
    return [{name: value for name, value in message.items() if value is not None} for message in prompt]


def _key(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(_plain(prompt), sort_keys=True, default=str)
