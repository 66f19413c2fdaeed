"""The one callback that carries attached methods through a transformers trainer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .host import samples_waiting

if TYPE_CHECKING:
    from transformers import Trainer

    from .attached import Attached

log = logging.getLogger(__name__)


class Hooks(TrainerCallback):
    """Hands the trainer's events to what is attached.

    A save that is due while on-policy samples wait to be learned from comes at the next step where none do: TRL's
    checkpoints do not hold the samples, so that no resume from one could equal a run without a stop.
    """

    def __init__(self, attached: Attached, trainer: Trainer) -> None:
        self.attached = attached
        self._trainer = trainer
        self._owes_save = False
        self._said = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.attached.begin(kwargs["model"], state.global_step, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.attached.end_step(state.global_step, last=state.global_step >= state.max_steps)
        self._hold_save(args, state, control)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._hold_save(args, state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._waiting(state, control):  # the best model's, which belongs to an evaluation
            self._say(
                "checkpoint-%d is saved while samples of the policy wait to be learned from: a resume from it starts "
                "with other samples",
                state.global_step,
            )
        # called on every process, when the folder exists; not told the path
        self.attached.save(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")

    def _hold_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        waiting = self._waiting(state, control)
        if waiting and control.should_save and not args.load_best_model_at_end:
            control.should_save, self._owes_save = False, True
            self._say(
                "a checkpoint is due at step %d, where samples of the policy wait to be learned from: it comes at the "
                "next step where none do, here and later on",
                state.global_step,
            )
        elif self._owes_save and not waiting:
            control.should_save, self._owes_save = True, False

    def _waiting(self, state: TrainerState, control: TrainerControl) -> bool:
        """True while samples wait in a training that goes on, with methods whose state a resume needs."""
        ends = control.should_training_stop or state.global_step >= state.max_steps
        return bool(self.attached.methods) and not ends and samples_waiting(self._trainer)

    def _say(self, text: str, step: int) -> None:
        if not self._said:
            self._said = True
            log.warning(text, step)
