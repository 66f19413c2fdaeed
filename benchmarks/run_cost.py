"""What one pocket run costs with its measurements, in processor seconds of one core, beside the shared imports.

    python benchmarks/run_cost.py [ALGORITHM] [RUNS]

A run is a plain training at the pocket's default settings with validation measured along the way and test at the end,
as `untaxed study` does it: files, weights and per-item scores included.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from untaxed import run_study
from untaxed.studies.events import Event


class Clock:
    """Notes the processor seconds of every run: from its first event to its last."""

    def __init__(self) -> None:
        self.runs: list[float] = []
        self._at = time.process_time()

    def __call__(self, event: Event) -> None:
        if event.kind == "done":
            self.runs.append(time.process_time() - self._at)
        if event.kind in ("plan", "done"):  # the last of the plans stands right before the first run
            self._at = time.process_time()


def seconds(algorithm: str, seeds: int, directory: Path) -> tuple[float, list[float]]:
    """Processor seconds of a study of `plain` alone, in this process, and of each run that it made."""
    spec = {
        "name": "cost",
        "models": {"initial": "pocket"},
        "algorithm": {"name": algorithm},
        "methods": ["plain"],
        "seeds": list(range(seeds)),
    }
    clock, began = Clock(), time.process_time()
    run_study(spec, directory, workers=0, progress=clock)
    return time.process_time() - began, clock.runs


def main(algorithm: str = "dpo", runs: int = 3) -> None:
    """The first run of a process also encodes the questions and measures the initial model's samples."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        whole, (first, *costs) = seconds(algorithm, 1 + runs, Path(scratch) / "study")
    print(f"{algorithm}: a study of {1 + runs} runs {whole:.1f} s with tests and summary; its first run {first:.1f} s")
    print(
        f"each further run: median {statistics.median(costs):.1f} s, {min(costs):.1f} to {max(costs):.1f} s of one core"
    )


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
