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


def seconds(algorithm: str, seeds: int, directory: Path) -> float:
    """Processor seconds of a study of `plain` alone, in this process."""
    spec = {
        "name": "cost",
        "models": {"initial": "pocket"},
        "algorithm": {"name": algorithm},
        "methods": ["plain"],
        "seeds": list(range(seeds)),
    }
    began = time.process_time()
    run_study(spec, directory, workers=0)
    return time.process_time() - began


def main(algorithm: str = "dpo", runs: int = 3) -> None:
    """The first study pays for imports and the initial model; each seed added to it costs one run."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        first = seconds(algorithm, 1, Path(scratch) / "study")
        costs = [seconds(algorithm, 1 + run, Path(scratch) / "study") for run in range(1, runs + 1)]
    print(f"{algorithm}: a study of one run {first:.1f} s; each further run, tests and summary included:")
    print(f"median {statistics.median(costs):.1f} s, {min(costs):.1f} to {max(costs):.1f} s of one core, {runs} runs")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
