"""Rewards that misbehave, as specs name them: ``study_rewards:slow``."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import tiny


def slow(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Takes its time, so that a test can strike in the middle of a run."""
    time.sleep(0.2)
    return tiny.reward(prompts, completions)


def deadly(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Kills its process, once, when the file that DEADLY names is there."""
    order = Path(os.environ["DEADLY"])
    if order.exists():
        order.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return tiny.reward(prompts, completions)


def nan(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    return [float("nan")] * len(prompts)


def short(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    return [0.0]


def raising(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    raise KeyError("label")
