"""`train`: one run from its first step or its last checkpoint to its end, observed along the way."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from ..checkpoints import disk_is_full, no_bars, no_space
from ..errors import DataError, RunFailed
from ..measuring import own_precision, undisturbed
from ..weights import trainable
from .attached import Attached, join
from .host import policy
from .memory import PeakMemory

if TYPE_CHECKING:
    from transformers import Trainer

Phase = Literal["before", "after"]


@dataclass(frozen=True)
class Moment:
    """A point of training at which the policy may be looked at.

    Attributes:
        step: Optimizer steps taken.
        phase: "before" and "after" a method replaced the policy's weights at this step, else None.
        steps_since_reset: Steps since that last happened, or since the start; None where no method does it.
        model: The policy.
    """

    step: int
    phase: Phase | None
    steps_since_reset: int | None
    model: nn.Module


@dataclass(frozen=True)
class Outcome:
    """What a run cost.

    Attributes:
        train_seconds: Wall time, measuring excluded, time before a resume included.
        peak_bytes: Highest memory: the accelerator's where there is one, else the process's resident set.
        steps: Optimizer steps taken.
    """

    train_seconds: float
    peak_bytes: int
    steps: int


def train(
    trainer: Trainer,
    attached: Attached | None = None,
    *,
    every: int,
    observe: Callable[[Moment], None] | None = None,
    log: Path | None = None,
    resume_dir: Path | None = None,
    checkpoint_every: int | None = None,
) -> Outcome:
    """Trains to the end. Observing changes nothing: with and without it the weights are equal to the bit.

    Args:
        trainer: From `make_trainer`.
        attached: From `attach`.
        every: Optimizer steps between observations; the last step, and both sides of a reset, are observed always.
        observe: Called under `undisturbed`.
        log: A file that gets one line of JSON a step.
        resume_dir: Where checkpoints for a resume lie; training goes on from the last whole one.
        checkpoint_every: Optimizer steps between them; one falls only where no on-policy samples wait. None: never.
    Raises:
        RunFailed: The loss or the weights became NaN or infinite, or the reward broke; the message names the step.
        StoreError: `resume_dir` holds something else, or the disk is full.
        Unsupported: `resume_dir` with several processes.
    """
    from .recorder import Recorder

    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    attached = attached if attached is not None else join(trainer, ())
    watch = _Watch(trainer, attached, every, observe)
    recorder = Recorder(trainer, watch.seconds, log=log, resume_dir=resume_dir, checkpoint_every=checkpoint_every)
    checkpoint = recorder.start()
    attached.observer = watch
    trainer.add_callback(recorder)
    try:
        with (
            PeakMemory(trainer.args.device) as peak,
            _finite_loss(trainer),
            _asked_once(),
            no_bars(),
            warnings.catch_warnings(),
        ):
            # trl 1.16 on transformers 5.23: a renamed attribute, read at every generation and reference pass
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            watch.start(recorder.earlier_seconds)
            trainer.train(resume_from_checkpoint=checkpoint)
            seconds = watch.seconds()
    except Exception as error:
        if resume_dir is not None and disk_is_full(error):
            raise no_space(resume_dir) from error
        raise
    finally:
        attached.observer = None
        trainer.remove_callback(recorder)
    return Outcome(seconds, max(peak.bytes, recorder.earlier_peak), trainer.state.global_step)


class _Watch:
    """Calls `observe` at the steps where it is due, and keeps its time apart from training's."""

    def __init__(
        self, trainer: Trainer, attached: Attached, every: int, observe: Callable[[Moment], None] | None
    ) -> None:
        self._trainer = trainer
        self._attached = attached
        self._every = every
        self._observe = observe
        self._started = 0.0
        self._apart = 0.0

    def start(self, earlier_seconds: float) -> None:
        self._started = time.perf_counter() - earlier_seconds

    def seconds(self) -> float:
        """Training time so far."""
        return time.perf_counter() - self._started - self._apart

    def __call__(self, step: int, *, last: bool, phase: str | None) -> None:
        if self._observe is None or not (phase or last or step % self._every == 0):
            return
        began = time.perf_counter()
        model = policy(self._trainer)
        if broken := [name for name, tensor in trainable(model).items() if not torch.isfinite(tensor).all()]:
            raise RunFailed(
                f"the weights are not finite after step {step} ({len(broken)} tensors, {broken[0]!r} first);"
                " lower learning_rate"
            )
        resets = any(method.resets for method in self._attached.methods)
        since = self._attached.steps_since_reset if resets else None
        with (
            self._attached.shown(),
            undisturbed(model, self._trainer.processing_class),
            own_precision(model),
            _measured_at(step),
        ):
            self._observe(Moment(step, phase, since, model))  # type: ignore[arg-type]
        self._apart += time.perf_counter() - began


@contextmanager
def _measured_at(step: int) -> Iterator[None]:
    """What measuring finds wrong with the policy, or with a reward, stops the run and names the step."""
    try:
        yield
    except RunFailed as error:
        raise RunFailed(f"at step {step}: {error}; lower learning_rate") from error
    except DataError as error:
        raise RunFailed(f"at step {step}: {error}") from error


@contextmanager
def _finite_loss(trainer: Trainer) -> Iterator[None]:
    """Stops the run at the first loss that is not finite, before it reaches the weights.

    The trainer's own filter (`logging_nan_inf_filter`) would hide it and train on; its test costs what ours costs.
    """
    inner, patched = trainer.training_step, "training_step" in vars(trainer)

    def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
        try:
            loss = inner(*args, **kwargs)
        except RuntimeError as error:
            if "probability tensor contains" not in str(error):
                raise
            step = trainer.state.global_step + 1
            raise RunFailed(f"the policy's probabilities are not finite at step {step}; lower learning_rate") from error
        if not torch.isfinite(loss):
            raise RunFailed(f"the loss is {loss.item()} at step {trainer.state.global_step + 1}; lower learning_rate")
        return loss

    trainer.training_step = training_step  # type: ignore[method-assign]
    try:
        yield
    finally:
        if patched:  # by somebody else, on this trainer alone
            trainer.training_step = inner  # type: ignore[method-assign]
        else:
            del trainer.training_step


@contextmanager
def _asked_once() -> Iterator[None]:
    """TRL asks at every step whether the policy is an adapter's, and accelerate parses peft's metadata each time.

    That is a twentieth of a small model's step. What is installed does not change while a run trains.
    """
    from accelerate.utils import modeling

    inner = getattr(modeling, "is_peft_available", None)
    if inner is None:  # another version's matter
        yield
        return
    modeling.is_peft_available = cache(inner)
    try:
        yield
    finally:
        modeling.is_peft_available = inner
