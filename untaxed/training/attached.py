"""`attach`: the one public way to join methods to a trainer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from ..callbacks import DriftMeter, DriftMeterState
from ..callbacks._followed import lent
from ..callbacks._state import COUNT, Check, check_state
from ..errors import StoreError, Unsupported
from ..method import Method
from ..sites import ALONE, Between, Shown
from ..together import check_together
from ..weights import trainable
from .around import host_of
from .host import (
    backend,
    check_method,
    check_model,
    check_settings,
    check_trainer,
    policy,
    samples_waiting,
    warn_low_precision,
)
from .in_loss import InLoss
from .in_step import InStep, acts_in_step
from .reference import check_reference
from .state import read_state, write_state

if TYPE_CHECKING:
    from transformers import Trainer

log = logging.getLogger(__name__)

DRIFT = DriftMeter.name
FOLDER = "untaxed"  # inside the trainer's own checkpoint-N
STATE: Mapping[str, tuple[str, Check]] = {
    "methods": ("a list", lambda value: isinstance(value, list)),
    "steps_since_reset": COUNT,
    "policy": COUNT,
    "states": ("a list", lambda value: isinstance(value, list)),
}


class Observer(Protocol):
    """Told about every step: once, or before and after a method replaces the policy's weights."""

    def __call__(self, step: int, *, last: bool, phase: str | None) -> None: ...


def attach(trainer: Trainer, *methods: Method) -> Attached:
    """Joins methods to a trainer; they act when it trains.

    Works with any transformers or TRL trainer. Called twice it equals one call with both lists. The methods' state is
    written into each of the trainer's checkpoints and taken up again by ``train(resume_from_checkpoint=…)``.

    Args:
        trainer: Before its `train()`.
        methods: In the order in which they act within a step.
    Returns:
        What was attached; `detach()` takes it off again.
    Raises:
        Unsupported: No method is given, or one cannot work with this trainer, would do nothing there, or is attached
            already; the message says why and what to do instead. What may have changed by then is checked again when
            training begins.
    Example:
        ::

            trainer = DPOTrainer(model, args=config, train_dataset=pairs)
            attach(trainer, ElasticReset(decay=0.995, reset_every=260))
            trainer.train()
    """
    check_trainer(trainer)
    if not methods:
        raise Unsupported("attach got no method and would do nothing; give one: attach(trainer, ElasticReset(…))")
    return join(trainer, methods)


def join(trainer: Trainer, methods: Sequence[Method]) -> Attached:
    """As `attach`; without methods, what is returned only watches the trainer's steps."""
    check_trainer(trainer)
    attached = _existing(trainer)
    joined = attached.methods if attached else ()
    for method in methods:
        check_method(trainer, method)
        if any(method.name == one.name and method.settings() == one.settings() for one in joined):
            raise Unsupported(f"{method.name} with these settings is attached already and would act twice a step")
        joined += (method,)
    check_together(joined)
    check_reference(trainer, joined)
    attached = attached or Attached(trainer)
    attached.in_loss.host(joined)
    attached.methods = joined
    attached.in_step.host([method for method in attached.methods if acts_in_step(method)])
    warn_low_precision(trainer, tuple(methods))
    return attached


class Attached:
    """The methods that are joined to one trainer.

    Attributes:
        methods: In the order in which they act.
        steps_since_reset: Optimizer steps since a method last replaced the policy's weights, or since the start.
        observer: Told about every step, before the methods act; `untaxed.training.train` sets it.
        in_step: What acts inside the optimizer's step.
        in_loss: What is added to the loss.
    """

    def __init__(self, trainer: Trainer) -> None:
        from .hooks import Hooks

        self.methods: tuple[Method, ...] = ()
        self.steps_since_reset = 0
        self.observer: Observer | None = None
        self._trainer = trainer
        self._live: list[Between] = []
        self._said = False
        self._began = False
        self._meters: dict[str, Any] = {}  # by name
        self._resetting: list[Any] = []
        self._host = ALONE
        self._loaded: Mapping[str, Any] | None = None
        self.in_step = InStep(trainer)
        self.in_loss = InLoss(trainer)
        self._hooks = Hooks(self, trainer)
        trainer.add_callback(self._hooks)

    def describe(self) -> dict[str, Any]:
        """What is attached to what, as plain values for a report."""
        return {
            "trainer": type(self._trainer).__name__,
            "backend": backend(self._trainer),
            "methods": [{"name": method.name, **method.settings(), **self._tokens(method)} for method in self.methods],
            "trainable_parameters": sum(tensor.numel() for tensor in trainable(policy(self._trainer)).values()),
        }

    def _tokens(self, method: Method) -> dict[str, int]:
        """What a drift meter's means are taken over, once it is bound to the policy."""
        live = self._meters.get(method.name)
        return live.tokens if isinstance(live, DriftMeterState) else {}

    def detach(self) -> None:
        """Takes the methods off the trainer; its weights stay as they are.

        Raises:
            Unsupported: They are off already.
        """
        if self._hooks not in self._trainer.callback_handler.callbacks:
            raise Unsupported("these methods are detached already; attach(trainer, …) joins methods again")
        self._trainer.remove_callback(self._hooks)
        self.in_step.release()
        self.in_loss.release()
        self.methods, self._live, self._meters, self._resetting = (), [], {}, []

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes during training, the live tensors themselves among it."""
        return {
            "methods": [{"name": method.name, **method.settings()} for method in self.methods],
            "steps_since_reset": self.steps_since_reset,
            "policy": _checksum(policy(self._trainer)),
            "states": [live.state_dict() for live in self._live] + self.in_loss.state_dicts(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state; before `train()` it is kept until the policy is there.

        Raises:
            StoreError: It is no saved state, or was saved with other methods or settings.
        """
        check_state(state, STATE, of="Attached")
        ours = [{"name": method.name, **method.settings()} for method in self.methods]
        if state["methods"] != ours:
            raise StoreError(f"the saved state belongs to the methods {state['methods']}, attached are {ours}")
        live = sum("between" in method.acts for method in self.methods) + len(self.in_loss.methods)
        if len(state["states"]) != live:
            raise StoreError(
                f"the saved state holds the states of {len(state['states'])} methods, {live} act here; "
                "give one that was saved after training began"
            )
        self._loaded = state
        if self._live or self.in_loss.terms:
            self._take_up()

    def load_checkpoint(self, directory: str | Path) -> None:
        """Takes up the state inside one of the trainer's own checkpoints, for a resume from another folder."""
        rank, world = self._trainer.args.process_index, self._trainer.args.world_size
        self.load_state_dict(read_state(Path(directory) / FOLDER, rank=rank, world=world))

    def begin(self, model: nn.Module, step: int, max_steps: int) -> None:
        """Binds the methods to the policy; called when training begins, after sharding and loading.

        Raises:
            Unsupported: A method cannot work, or the policy has been trained already and is not resumed.
        """
        if self._began and not step and (self.in_loss.methods or any(one.acts - {"loss"} for one in self.methods)):
            raise Unsupported(
                "train() was called again on a trainer whose policy has moved, which the methods would take for the "
                "initial model; go on with train(resume_from_checkpoint=…), or build a new trainer and attach to it"
            )
        self._live = []  # of an earlier train(): what is loaded below is for the new ones
        for method in self.methods:
            check_settings(self._trainer, method, max_steps=max_steps)
        if self.methods:
            check_model(self._trainer)
        check_reference(self._trainer, self.methods)
        between = [method for method in self.methods if "between" in method.acts]
        if step and (between or self.in_loss.methods) and self._loaded is None:
            self.load_checkpoint(Path(str(self._trainer.args.output_dir)) / f"checkpoint-{step}")
        self.steps_since_reset = 0
        metered = any(method.name == DRIFT for method in between)
        host = host_of(self._trainer, drift=self.drift if metered else None, reset=self._ask)
        self._host = host
        self.in_step.bind(model, host)
        self._live = [method.between(model, host) for method in between]
        self.in_loss.begin(self.methods, fresh=self._loaded is None)
        pairs = list(zip(between, self._live, strict=True))
        self._meters = {method.name: live for method, live in pairs if method.watches}
        self._resetting = [live for method, live in pairs if method.resets]
        if self._loaded is not None:
            self._take_up()

    def end_step(self, step: int, *, last: bool) -> None:
        """One optimizer step is over: measure drift, let the methods take the step in, observe, then let those act that
        replace the policy or its reference.

        No reset at the last step, where nothing could recover from it, nor while samples of the old policy wait to be
        learned from; a reset that is due then comes at the next step that is free. The same holds for a reference.
        """
        self._began = True
        self.in_loss.end_step()
        readings = self.in_step.readings()
        if readings and self._trainer.control.should_log and self._host.log is not None:
            self._host.log(readings)
        if last:
            self.in_step.flush()
        for meter in self._meters.values():
            meter.step()
        if self._trainer.control.should_training_stop and not last:  # a guard ends it here
            last = True
            self.in_step.flush()
        free = not last and not samples_waiting(self._trainer)
        between = [method for method in self.methods if "between" in method.acts]
        pairs = zip(between, self._live, strict=True)
        acting = [(method, live) for method, live in pairs if not method.watches]
        due = [live for _, live in acting if live.due()]
        replaces = free and any(method.resets for method, live in acting if live in due)
        for method, live in acting:
            if not free:
                if live in due:
                    self._say_held(method, step, last=last)
                live.skip()
            elif live not in due:
                live.step()
        self.steps_since_reset += 1
        if self.observer is not None:
            self.observer(step, last=last, phase="before" if replaces else None)
        for live in due if free else ():
            live.step()
        if replaces:
            self.steps_since_reset = 0
            if self.observer is not None:
                self.observer(step, last=last, phase="after")

    @contextmanager
    def shown(self) -> Iterator[nn.Module]:
        """The policy with the weights that are to be measured and shipped: those of an average that goes along, or its
        own, after a projection that is owed to them. They are put back at the end, bit for bit: ``with
        attached.shown(): trainer.save_model()``.
        """
        model = policy(self._trainer)
        given = next((live.variant() for live in self._live if isinstance(live, Shown)), {})
        with lent(model, {**given, **self.in_step.settled(given)}):
            yield model

    def drift(self) -> dict[str, float]:
        """The last readings of the drift meter by measure, and their ``step``; empty before the first."""
        return dict(self._meters[DRIFT].reading) if DRIFT in self._meters else {}

    def _ask(self) -> None:
        for live in self._resetting:
            live.ask()

    def save(self, directory: Path) -> None:
        """Writes the state into one of the trainer's checkpoints; every process writes its own shard."""
        rank, world = self._trainer.args.process_index, self._trainer.args.world_size
        write_state(directory / FOLDER, self.state_dict(), rank=rank, world=world)

    def _say_held(self, method: Method, step: int, *, last: bool) -> None:
        """Says once that a method keeps to the steps at which no samples wait."""
        if not last and not self._said:
            self._said = True
            log.warning(
                "%s is due at step %d, where samples of the policy wait to be learned from: it comes at the next step "
                "where none do, here and later on",
                method.name,
                step,
            )

    def _take_up(self) -> None:
        assert self._loaded is not None
        state, self._loaded = self._loaded, None
        if state["policy"] != _checksum(policy(self._trainer)):
            raise StoreError(
                "the saved state belongs to other weights than the policy's; resume the trainer from the checkpoint "
                "that the state was saved in, or call load_checkpoint with the folder it resumes from"
            )
        for live, saved in zip(self._live, state["states"]):
            live.load_state_dict(saved)
        self.in_loss.load_state_dicts(state["states"][len(self._live) :])
        self.steps_since_reset = state["steps_since_reset"]


def _existing(trainer: Trainer) -> Attached | None:
    from .hooks import Hooks

    found = [hook.attached for hook in trainer.callback_handler.callbacks if isinstance(hook, Hooks)]
    return found[0] if found else None


def _checksum(model: nn.Module) -> int:
    """The sum of all bytes of the trainable weights: exact on every machine, and enough to tell checkpoints apart."""
    return sum(
        int(tensor.contiguous().view(torch.uint8).sum(dtype=torch.int64)) if tensor.dim() else 0
        for tensor in trainable(model).values()
    )
