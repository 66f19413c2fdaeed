"""Training arguments: what a spec may say, checked against TRL's config class and turned into its words."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from functools import cache
from typing import Any, get_type_hints

from ..errors import SpecError, nearest
from ..values import typed
from .algorithms import Algorithm, algorithm

LARGEST_MICRO_BATCH = 64  # items a process takes at once where the spec does not say

OURS = {"batch_size": int, "micro_batch_size": int}

RESERVED = {
    "output_dir": "the study chooses its own folders",
    "seed": "seeds are a key of the study (`seeds`)",
    "data_seed": "seeds are a key of the study (`seeds`)",
    "per_device_train_batch_size": "give batch_size, and micro_batch_size where memory is short",
    "gradient_accumulation_steps": "it follows from batch_size and micro_batch_size",
    "num_train_epochs": "give max_steps",
    "save_strategy": "the study decides what is kept (`keep`)",
    "save_steps": "the study decides what is kept (`keep`)",
    "eval_strategy": "the study measures by itself (`measure`)",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "push_to_hub": "nothing is sent anywhere",
    "hub_token": "nothing is sent anywhere, and a spec is copied into reports",
    "load_best_model_at_end": "the study chooses among what it measured",
    "eval_steps": "the study measures by itself (`measure`)",
    "do_train": "a study trains",
    "deepspeed": "a study does not run under DeepSpeed",
    "resume_from_checkpoint": "a study resumes by itself",
    "model_init_kwargs": "models are loaded in float32 by the study",
    "trust_remote_code": "remote code is not run",
    "ref_model_init_kwargs": "models are loaded in float32 by the study",
    "auto_find_batch_size": "give micro_batch_size",
    "gradient_checkpointing": "transformers calls it activation_checkpointing now",
    "logging_strategy": "every step is logged",
    "logging_steps": "every step is logged",
}

RANGES: dict[str, tuple[str, Any]] = {
    "max_steps": ("at least 1", lambda value: value >= 1),
    "learning_rate": ("above 0", lambda value: value > 0),
    "batch_size": ("at least 1", lambda value: value >= 1),
    "micro_batch_size": ("at least 1", lambda value: value >= 1),
    "warmup_steps": ("at least 0", lambda value: value >= 0),
    "max_grad_norm": ("at least 0", lambda value: value >= 0),
    "weight_decay": ("at least 0", lambda value: value >= 0),
    "num_generations": ("at least 2", lambda value: value >= 2),
    "num_iterations": ("at least 1", lambda value: value >= 1),
    "steps_per_generation": ("at least 1", lambda value: value >= 1),
    "generation_batch_size": ("at least 1", lambda value: value >= 1),
    "max_completion_length": ("at least 1", lambda value: value >= 1),
    "max_length": ("at least 2", lambda value: value >= 2),
    "temperature": ("above 0", lambda value: value > 0),
    "top_p": ("in (0, 1]", lambda value: 0 < value <= 1),
}


def check_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Checks an algorithm's arguments: `max_steps`, `learning_rate`, `batch_size`, `micro_batch_size` and every field
    of TRL's config class that a study does not decide itself.

    Args:
        name: The algorithm.
        arguments: As a spec gives them.
    Returns:
        The same with every value in its field's type ("1e-6", as YAML reads it, becomes a number).
    Raises:
        SpecError: The key or value that is wrong, the nearest known key or the range.
    """
    row = algorithm(name)
    known = _fields(row.name)
    return {key: _checked(row, known, key, value) for key, value in arguments.items()}


def _checked(row: Algorithm, known: Mapping[str, Any], key: str, value: Any) -> Any:
    where = f"algorithm {row.name}: {key}"
    if key in row.fixed:
        raise SpecError(f"{where} cannot be set: {row.name} is {row.trainer} with {key} {row.fixed[key]}")
    if key in RESERVED:
        raise SpecError(f"{where} cannot be set: {RESERVED[key]}")
    if key not in known:
        raise SpecError(f"algorithm {row.name} has no argument {key!r}{_nearest_only(str(key), known)}")
    value = typed(where, known[key], value)
    lower = ("above 0", lambda beta: beta > 0) if not row.on_policy else ("at least 0", lambda beta: beta >= 0)
    words, holds = lower if key == "beta" else RANGES.get(key, ("", lambda _: True))
    if value is not None and not holds(value):
        raise SpecError(f"{where} must be {words}, got {value}")
    return value


def _nearest_only(key: str, known: Mapping[str, Any]) -> str:
    """The guess alone: the list of all fields of a config class would hide it."""
    guess = nearest(key, known).split(" known:")[0]
    return guess if "did you mean" in guess else f"; see the fields of TRL's config class ({len(known)} are known)"


@cache
def _fields(name: str) -> dict[str, Any]:
    config = algorithm(name).config_class()
    hints = get_type_hints(config)
    return OURS | {item.name: hints[item.name] for item in dataclasses.fields(config) if item.init}


def to_config(row: Algorithm, arguments: Mapping[str, Any], world_size: int | None = None) -> dict[str, Any]:
    """Turns checked arguments into the config's own: the batch becomes micro-batches times accumulation.

    Args:
        row: The algorithm.
        arguments: With `batch_size`, items an optimizer step over all processes, and maybe `micro_batch_size`, items a
            process takes at once.
        world_size: Number of processes; asked of the environment unless given.
    Raises:
        SpecError: Sizes that do not divide, with both numbers.
    """
    world = world_size or int(os.environ.get("WORLD_SIZE", "1"))
    config = dict(arguments)
    batch, micro = config.pop("batch_size"), config.pop("micro_batch_size", None)
    _divides(row, f"batch_size ({batch} {row.item})", batch, f"the {world} processes", world)
    share = batch // world
    if micro is None:
        micro = next(size for size in range(min(share, LARGEST_MICRO_BATCH), 0, -1) if share % size == 0)
    _divides(row, f"batch_size / processes ({share})", share, f"micro_batch_size ({micro})", micro)
    config["per_device_train_batch_size"] = 2 * micro if row.takes_apart else micro
    config["gradient_accumulation_steps"] = share // micro
    if row.on_policy:
        _set_generation(row, config, batch, micro * world)
    return {**config, **row.fixed}


def free_every(name: str, arguments: Mapping[str, Any]) -> int:
    """Optimizer steps from one at which no on-policy samples wait to the next, of checked arguments."""
    row = algorithm(name)
    if not row.on_policy:
        return 1
    config = to_config(row, arguments)
    return int(config["generation_batch_size"] // arguments["batch_size"] * config.get("num_iterations", 1))


def _set_generation(row: Algorithm, config: dict[str, Any], batch: int, at_once: int) -> None:
    """Completions are sampled for whole optimizer steps, so that there are steps at which none are left over."""
    if "steps_per_generation" in config and "generation_batch_size" in config:
        raise SpecError(f"algorithm {row.name}: give steps_per_generation or generation_batch_size, not both")
    steps = config.pop("steps_per_generation", None)
    size = config.get("generation_batch_size") or (steps * at_once if steps else batch)
    default = next(item.default for item in dataclasses.fields(row.config_class()) if item.name == "num_generations")
    groups = config.get("num_generations", default)
    _divides(row, f"generation_batch_size ({size} completions)", size, f"batch_size ({batch})", batch)
    _divides(row, f"generation_batch_size ({size} completions)", size, f"num_generations ({groups})", groups)
    config["generation_batch_size"] = size


def _divides(row: Algorithm, what: str, whole: int, by: str, part: int) -> None:
    if whole % part:
        raise SpecError(f"algorithm {row.name}: {what} must be a multiple of {by}")
