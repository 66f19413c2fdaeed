"""What the framework costs over the bare TRL trainer on the same run, without measuring.

Pairs of runs in one process, in alternating order, so that a slow moment of the machine falls on both::

    python benchmarks/overhead.py [--algorithm dpo] [--steps 60] [--pairs 7] [--tiny]

Prints, for the plain run, for one with Elastic Reset and for one with resume checkpoints, the median of the pairs'
ratios (framework / bare) with their range, in processor time and in wall time. `--tiny` takes the tests' two-layer
model, where every fixed cost shows most.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import set_seed

from untaxed.callbacks import ElasticReset
from untaxed.method import Method
from untaxed.training import Task, join, make_trainer, train

Times = list[float]  # processor seconds, wall seconds


@contextmanager
def timed() -> Iterator[Times]:
    times = [-time.process_time(), -time.perf_counter()]
    yield times
    times[0] += time.process_time()
    times[1] += time.perf_counter()


def tiny_task(folder: Path) -> Task:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from tiny import build_model_dir, build_task

    return build_task(build_model_dir(folder / "initial"))


def pocket_task(folder: Path) -> Task:
    from untaxed import pocket

    return pocket.task()


def bare(task: Task, algorithm: str, steps: int, folder: Path) -> Times:
    """TRL's own trainer, configured the same, nothing of ours around its training."""
    trainer = make_trainer(algorithm, {"max_steps": steps}, task=task, seed=0, output_dir=folder)
    set_seed(0, device_specific=True)
    with timed() as times:
        trainer.train()
    return times


def framework(task: Task, algorithm: str, steps: int, folder: Path, *methods: Method, resume: bool = False) -> Times:
    """The same run through `attach` and `train`, with its log, as a study does it."""
    trainer = make_trainer(algorithm, {"max_steps": steps}, task=task, seed=0, output_dir=folder)
    attached = join(trainer, methods)
    with tempfile.TemporaryDirectory(dir=folder) as place, timed() as times:
        train(
            trainer,
            attached,
            every=steps,
            log=Path(place) / "metrics.jsonl",
            resume_dir=Path(place) / "resume" if resume else None,
            checkpoint_every=max(1, steps // 3) if resume else None,
        )
    return times


def ratios(first: Callable[[], Times], second: Callable[[], Times], pairs: int) -> list[Times]:
    """second / first, pair by pair, the order alternating."""
    found = []
    for number in range(pairs):
        if number % 2:
            after, before = second(), first()
        else:
            before, after = first(), second()
        found.append([a / b for a, b in zip(after, before, strict=True)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithm", default="dpo")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = (tiny_task if options.tiny else pocket_task)(folder)
        run = task, options.algorithm, options.steps, folder
        bare(*run)  # warms the caches
        print(f"{options.algorithm}, {options.steps} steps, {options.pairs} pairs; bare run {bare(*run)[1]:.2f} s")
        print(f"{'':28s} {'processor':24s} wall")
        cases: dict[str, Callable[[], Times]] = {
            "bare again": lambda: bare(*run),
            "plain": lambda: framework(*run),
            "elastic_reset": lambda: framework(*run, ElasticReset(decay=0.98, reset_every=max(1, options.steps // 4))),
            "plain, 3 resume checkpoints": lambda: framework(*run, resume=True),
        }
        for label, case in cases.items():
            found = ratios(lambda: bare(*run), case, options.pairs)
            columns = [
                f"{statistics.median(column):.3f} ({min(column):.3f} to {max(column):.3f})" for column in zip(*found)
            ]
            print(f"{label:28s} {'   '.join(columns)}")


if __name__ == "__main__":
    main()
