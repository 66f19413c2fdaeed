"""What every method of a study's spec costs in training beside plain: time a step, and time before the first step.

    python benchmarks/method_cost.py studies/pocket_all_dpo.yaml [--steps 22] [--pairs 3] [--only NAME …]

Of each arm that acts in training the middle one of its settings, or the first where that one does nothing in so few
steps; arms that act after training cost nothing here. The method's training and a plain one are taken in turns within
one process, on one thread; ratios pair by pair of the mean time of a step, the first two left out. Before the first
step stand, among others, a look at general prompts (nspo) and the samples of a drift meter.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from untaxed import pocket
from untaxed.errors import Unsupported
from untaxed.method import Method
from untaxed.studies.arms import plan_arms
from untaxed.studies.spec import load_spec
from untaxed.training import Task, join, make_trainer, train
from untaxed.training.drift import with_meter
from untaxed.training.inputs import with_inputs

LEFT_OUT = 2  # steps at the beginning


class Steps(TrainerCallback):
    """Notes when every step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def seconds(task: Task, algorithm: str, steps: int, folder: Path, methods: Sequence[Method]) -> tuple[float, float]:
    """Mean seconds of a step, and what passes before the first over one of them."""
    given = with_meter(with_inputs(methods, task), task, steps=steps)
    trainer = make_trainer(algorithm, {"max_steps": steps}, task=task, seed=0, output_dir=folder, methods=given)
    clock, attached = Steps(), join(trainer, [one for one in given if one.acts])
    trainer.add_callback(clock)
    began = time.perf_counter()
    train(trainer, attached, every=steps)
    step = (clock.ends[-1] - clock.ends[LEFT_OUT - 1]) / (steps - LEFT_OUT)
    return step, clock.ends[0] - began - step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("spec", type=Path)
    parser.add_argument("--steps", type=int, default=22)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    spec = load_spec(options.spec).resolved()
    task, algorithm = pocket.WORLDS[spec["models"]["initial"]].task(), spec["algorithm"]["name"]
    print("| method | a step beside plain's | lowest and highest | before the first step, seconds beside plain |")
    print("|---|--:|---|--:|")
    for arm in plan_arms(spec["methods"]):
        settings = [one for one in arm.settings if one.training]
        if not settings or len(arm.methods) > 1 or (options.only and arm.label not in options.only):
            continue
        with tempfile.TemporaryDirectory() as name:
            run = task, algorithm, options.steps, Path(name)
            chosen = settings[len(settings) // 2]
            try:
                seconds(*run, chosen.training)
            except Unsupported:  # it would act too late
                chosen = settings[0]
            pairs = [(seconds(*run, chosen.training), seconds(*run, ())) for _ in range(options.pairs)]
        ratios = [ours[0] / plain[0] for ours, plain in pairs]
        before = statistics.median(ours[1] - plain[1] for ours, plain in pairs)
        label = " ".join(filter(None, [arm.label, chosen.label]))
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"| {label} | {statistics.median(ratios):.2f} | {spread} | {before:.1f} |", flush=True)


if __name__ == "__main__":
    main()
