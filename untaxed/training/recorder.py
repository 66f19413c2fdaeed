"""What a run leaves on disk while it trains: one line a step, and checkpoints to resume from."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import set_seed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..checkpoints import flush
from ..errors import StoreError, Unsupported
from .host import samples_waiting
from .memory import resident_peak

if TYPE_CHECKING:
    from transformers import Trainer

MARKER = "untaxed-resume.json"  # in the folder: it is ours; in a checkpoint: it is whole


class Recorder(TrainerCallback):
    """Writes the log and the resume checkpoints of one run.

    Args:
        trainer: Whose checkpoints go to `resume_dir`.
        seconds: Says the training time so far.
        log: The log's file, or None.
        resume_dir: The checkpoints' folder, or None.
        checkpoint_every: Optimizer steps between checkpoints, or None.
    """

    def __init__(
        self,
        trainer: Trainer,
        seconds: Callable[[], float],
        *,
        log: Path | None,
        resume_dir: Path | None,
        checkpoint_every: int | None,
    ) -> None:
        if checkpoint_every is not None and (checkpoint_every < 1 or resume_dir is None):
            raise ValueError(f"checkpoint_every must be at least 1 and needs resume_dir, got {checkpoint_every}")
        if resume_dir is not None and trainer.args.world_size > 1:
            raise Unsupported(
                "resume_dir serves one process; with several, give the trainer save_strategy and resume_from_checkpoint"
            )
        self.earlier_seconds = 0.0
        self.earlier_peak = 0
        self._trainer = trainer
        self._seconds = seconds
        self._log = log
        self._folder = None if resume_dir is None else Path(resume_dir)
        self._every = checkpoint_every
        self._last_saved = 0
        self._line: dict[str, Any] = {}  # what has been logged of the present step

    def start(self) -> str | None:
        """Makes the folder ready; returns the checkpoint to go on from, or None for a start from the seed."""
        checkpoint = None if self._folder is None else self._last_whole(self._folder)
        if checkpoint is None:
            # whatever used random numbers between the trainer's construction and now must not matter
            set_seed(self._trainer.args.seed, device_specific=True)
        else:
            notes = json.loads((checkpoint / MARKER).read_text())
            self.earlier_seconds, self.earlier_peak = notes["train_seconds"], notes["peak_bytes"]
            self._last_saved = notes["step"]
        self._cut_log()
        return None if checkpoint is None else str(checkpoint)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        due = self._every is not None and state.global_step - self._last_saved >= self._every
        if due and state.global_step < state.max_steps and not samples_waiting(self._trainer):
            control.should_save = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._folder is None:
            return
        checkpoint = self._folder / f"checkpoint-{state.global_step}"
        self._write_line()
        flush(checkpoint)
        notes = {"step": state.global_step, "train_seconds": self._seconds(), "peak_bytes": resident_peak()}
        _write(checkpoint / MARKER, notes)
        self._last_saved = state.global_step
        for older in _checkpoints(self._folder):
            if older != checkpoint:
                shutil.rmtree(older)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Gathers what is logged at a step, until the trainer's own line, with the loss, completes it."""
        if self._log is None or not state.is_world_process_zero or logs is None:
            return
        if any(key.endswith("_runtime") for key in logs):
            return  # a summary, of an evaluation or at the end: no step
        self._line |= {"step": state.global_step, **{key: _plain(value) for key, value in logs.items()}}
        if "loss" in logs:
            self._write_line()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._write_line()  # of a step that the trainer did not log

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._write_line()

    def _write_line(self) -> None:
        if self._line and self._log is not None:
            line, self._line = self._line, {}
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")

    def _last_whole(self, folder: Path) -> Path | None:
        if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).is_file():
            raise StoreError(f"{folder} is not a resume folder of ours; its checkpoints are not loaded")
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / MARKER, {"version": 1})
        self._trainer.args.output_dir = str(folder)
        found = _checkpoints(folder)
        whole = [checkpoint for checkpoint in found if (checkpoint / MARKER).is_file()]
        for partial in set(found) - set(whole):  # killed while it was written
            shutil.rmtree(partial)
        return whole[-1] if whole else None

    def _cut_log(self) -> None:
        """Drops the lines after the step that training goes on from, and one that was cut short by a kill."""
        if self._log is None or not self._trainer.is_world_process_zero():
            return
        self._log.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        for line in self._log.read_text(encoding="utf-8").splitlines() if self._log.exists() else ():
            if not line.endswith("}") or json.loads(line)["step"] > self._last_saved:
                break
            kept.append(line + "\n")
        self._log.write_text("".join(kept), encoding="utf-8")


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def _write(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: an undefined number is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
