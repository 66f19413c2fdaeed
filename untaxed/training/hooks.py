"""The one callback that carries attached methods through a transformers trainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from .attached import Attached


class Hooks(TrainerCallback):
    """Hands the trainer's events to what is attached."""

    def __init__(self, attached: Attached) -> None:
        self.attached = attached

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.attached.begin(kwargs["model"], state.global_step, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.attached.end_step(state.global_step, last=state.global_step >= state.max_steps)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # called on every process, when the folder exists; not told the path
        self.attached.save(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")
