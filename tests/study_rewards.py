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
    """Kills its process, once, when the file that DEADLY names is there: at the call after as many as it says."""
    order = Path(os.environ["DEADLY"])
    if order.exists():
        left = int(order.read_text() or 0)
        order.unlink()
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        order.write_text(str(left - 1))
    return tiny.reward(prompts, completions)


def service(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Is out of reach while SERVICE_DOWN is set."""
    if "SERVICE_DOWN" in os.environ:
        raise ConnectionError("the reward service is down")
    return tiny.reward(prompts, completions)


def nan(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    return [float("nan")] * len(prompts)


def short(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    return [0.0]


def raising(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    raise KeyError("label")


def huge(prompts: Sequence[str], completions: Sequence[str]) -> list[int]:
    return [10**400] * len(prompts)


def late(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Breaks in the middle of a run: initial is measured on two splits, then the policy."""
    calls.append(len(prompts))
    return [float("nan")] * len(prompts) if len(calls) > 2 else tiny.reward(prompts, completions)


calls: list[int] = []
