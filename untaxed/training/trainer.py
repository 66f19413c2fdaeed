"""Building one run's trainer: policy and reference from the task's initial model, the arguments, the data."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..checkpoints import disk_is_full, load_model, load_tokenizer, no_bars
from ..errors import CheckpointError, DataError, RunFailed, SpecError, UntaxedError, last_line, require
from ..method import Method
from ..sites import Context
from ..together import check_overridden, check_together
from .adapters import adapter_of, check_targets, seeded, trains_adapter
from .algorithms import Algorithm, algorithm
from .arguments import check_arguments, free_every, to_config
from .data import as_reward_function, check_preferences, check_prompts, holds_messages, take_apart
from .defaults import LARGE, machine_defaults, no_telemetry
from .host import policy
from .task import Task

if TYPE_CHECKING:
    from transformers import Trainer


def make_trainer(
    name: str,
    arguments: Mapping[str, Any],
    *,
    task: Task,
    seed: int,
    output_dir: str | Path,
    methods: Sequence[Method] = (),
) -> Trainer:
    """Builds TRL's trainer for one run, ready for `attach` and `train`.

    Policy and reference are loaded here from ``task.initial`` in float32: TRL would load its reference in the dtype of
    the file, and bfloat16 weights hardly move at the learning rates of alignment.

    Args:
        name: The algorithm, a row of `ALGORITHMS`.
        arguments: Go before the task's own, which go before the algorithm's and the machine's.
        task: Models, data and reward.
        seed: Of data order, sampling and generation.
        output_dir: Where the trainer may write; it does so only for its resume state.
        methods: The run's methods. Here they only give arguments to the algorithm and are checked; those that act in
            training are joined by `attach`.
    Raises:
        SpecError: An argument that is unknown or out of range, sizes that do not divide.
        CheckpointError: A model that cannot be used, a tokenizer without an end-of-text token.
        DataError: Preferences or prompts that cannot be used, or of which TRL leaves none over.
        Unsupported: A method that cannot work with this algorithm.
    """
    row = algorithm(name)
    chosen = _arguments(row, arguments, task, ())
    context = Context(
        row.name,
        chosen["max_steps"],
        given=task.given,
        lora=trains_adapter(methods),
        free_every=free_every(row.name, chosen),
    )
    for method in methods:
        method.check(context)
    check_together(methods)
    check_overridden(methods, chosen)
    chosen = _arguments(row, arguments, task, methods)
    model, tokenizer = load_model(task.initial), load_tokenizer(task.initial)
    if model.num_parameters() >= LARGE:
        chosen.setdefault("activation_checkpointing", True)
    config = _config(row, {**machine_defaults(), **chosen}, seed, output_dir)
    if row.name == "grpo" and config.beta == 0:
        warnings.warn("grpo with beta 0: drift from the initial model is not part of training", stacklevel=2)
    require("datasets", extra="train")  # loaded before its bars can be switched off
    _check_tokenizer(row, tokenizer, task)
    with no_bars(), _one_line(row):
        trainer = _build(row, config, task, model, tokenizer, adapter_of(methods))
    if not row.on_policy:
        _check_dropped(row, trainer, task)
    _check_reference(trainer, task)
    _remove_printer(trainer)
    return trainer


def check_training(name: str, arguments: Mapping[str, Any], task: Task) -> None:
    """Checks everything of a training that can be known without a model: sizes, TRL's own rules, the rows.

    Raises:
        SpecError: Sizes that do not divide, an option that TRL refuses.
        DataError: Preferences that cannot be used, no reward for an algorithm that needs one.
    """
    row = algorithm(name)
    with tempfile.TemporaryDirectory() as scratch:
        _config(row, {**machine_defaults(), **_arguments(row, arguments, task, ())}, 0, scratch)
    if not row.on_policy:
        check_preferences(task.preferences)
    elif task.reward is None:
        raise DataError(f"{row.name} needs a reward; the task has none")


def _arguments(row: Algorithm, arguments: Mapping[str, Any], task: Task, methods: Sequence[Method]) -> dict[str, Any]:
    merged = {**row.defaults, **task.arguments.get(row.name, {}), **arguments}
    for method in methods:
        merged.update(method.arguments())
    return check_arguments(row.name, merged)


def _config(row: Algorithm, arguments: Mapping[str, Any], seed: int, output_dir: str | Path) -> Any:
    no_telemetry()
    values = to_config(row, arguments)
    try:
        return row.config_class()(output_dir=str(output_dir), seed=seed, data_seed=seed, **values)
    except (ValueError, TypeError) as error:  # what TRL itself refuses: unknown names of schedules, combinations
        raise SpecError(f"algorithm {row.name}: {str(error).strip().splitlines()[0]}") from error


def _build(row: Algorithm, config: Any, task: Task, model: nn.Module, tokenizer: Any, adapter: Any) -> Trainer:
    if adapter is None:
        return _built(row, config, task, model, tokenizer)
    check_targets(model, adapter)
    with seeded(config.seed):
        return _built(row, config, task, model, tokenizer, adapter)


def _built(row: Algorithm, config: Any, task: Task, model: nn.Module, tokenizer: Any, adapter: Any = None) -> Trainer:
    datasets = require("datasets", extra="train")
    build = partial(row.trainer_class(), peft_config=adapter)
    if not row.on_policy:
        rows = check_preferences(task.preferences)
        data = datasets.Dataset.from_list(take_apart(rows, seed=config.seed) if row.takes_apart else rows)
        reference = None if adapter else load_model(task.initial)  # without its adapter a policy is its own
        return build(model, reference, args=config, train_dataset=data, processing_class=tokenizer)
    if task.reward is None:
        raise DataError(f"{row.name} needs a reward; the task has none")
    prompts = check_prompts(task.prompts, needed=config.generation_batch_size // config.num_generations)
    # the wrapper needs the trainer for the step's number, and the trainer needs the wrapper first
    built: list[Trainer] = []
    reward = as_reward_function(task.reward, lambda: built[0].state.global_step + 1)
    data = datasets.Dataset.from_list(prompts)
    built.append(build(model, reward, args=config, train_dataset=data, processing_class=tokenizer))
    return built[0]


@contextmanager
def _one_line(row: Algorithm) -> Iterator[None]:
    """What TRL raises while it builds a trainer becomes one line; the traceback stays behind it, as the cause."""
    try:
        yield
    except UntaxedError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise RunFailed(f"algorithm {row.name}: no memory for its trainer: {last_line(error)}") from error
    except Exception as error:
        if disk_is_full(error):
            raise
        raise SpecError(
            f"algorithm {row.name}: TRL cannot build {row.trainer} with these arguments, data and models:"
            f" {type(error).__name__}: {last_line(error)}"
        ) from error


def _check_tokenizer(row: Algorithm, tokenizer: Any, task: Task) -> None:
    """Every algorithm ends its texts, or finds their end, by the end-of-text token."""
    if tokenizer.eos_token is None:
        raise CheckpointError(
            f"the tokenizer of {task.initial} has no eos_token, which {row.name} needs; "
            "name one of its tokens as eos_token in tokenizer_config.json"
        )
    if not row.on_policy and holds_messages(task.preferences) and tokenizer.chat_template is None:
        raise DataError(
            f"the preferences are lists of messages, and the tokenizer of {task.initial} has no chat template to make "
            "texts of them; give texts, or save the model with a tokenizer that has one"
        )


def _check_dropped(row: Algorithm, trainer: Any, task: Task) -> None:
    """TRL drops the rows whose prompt alone takes `max_length` tokens, and says nothing."""
    given, left = len(task.preferences) * (2 if row.takes_apart else 1), len(trainer.train_dataset)
    if left == given:
        return
    how = f"{given - left} of {given} rows have prompts of {trainer.args.max_length} tokens or more (max_length)"
    if not left:
        raise DataError(f"algorithm {row.name}: {how}, so that nothing is left to train on; raise max_length")
    warnings.warn(f"{row.name}: {how} and are left out of training; raise max_length", stacklevel=3)


def _check_reference(trainer: Trainer, task: Task) -> None:
    """The reference must be the initial model to the bit, or drift would be held against something else."""
    reference = getattr(trainer, "ref_model", None)
    if reference is None:
        return
    ours = dict(trainer.accelerator.unwrap_model(reference).named_parameters())
    for name, parameter in policy(trainer).named_parameters():
        if name not in ours or ours[name].dtype != parameter.dtype or not torch.equal(ours[name], parameter):
            raise RunFailed(f"the reference differs from {task.initial} at {name!r} before the first step")


def _remove_printer(trainer: Trainer) -> None:
    """Without a progress bar, transformers prints every log line; library code does not print."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
