"""What a study will cost before it starts: runs, minutes and disk."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import training
from ..measuring import measure
from .arms import RunPlan
from .bench import Bench
from .events import counted
from .store import Store

PROBED_STEPS = 2


@dataclass(frozen=True)
class Estimate:
    """What is to be done.

    Attributes:
        runs: Trainings (or rows of given checkpoints) in all.
        done: Those that are done already.
        failed: Those that failed and are not tried again.
        steps: Optimizer steps a run.
        points: Models measured a run, variants included; before resets are counted, which measure one more each.
        seconds: Wall time of what is left; None while nothing is known.
        basis: What the time was estimated from.
        disk_bytes: Most that lies on disk at a time, the trainer's own state left aside.
        kept_bytes: What stays.
    """

    runs: int
    done: int
    failed: int
    steps: int
    points: int
    seconds: float | None
    basis: str
    disk_bytes: int
    kept_bytes: int

    def json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(
    store: Store,
    runs: Mapping[str, RunPlan],
    unfinished: Sequence[RunPlan],
    facts: Mapping[str, Any],
    *,
    keep: Sequence[str],
    workers: int,
    probed: Mapping[str, float] | None,
) -> Estimate:
    """Estimates from the runs that are done, or else from a probe.

    Args:
        store: The study's files, which need not exist.
        runs: All runs.
        unfinished: Those with something left to do.
        facts: Of the prepared task.
        keep: The kept checkpoints.
        workers: Runs that are done side by side.
        probed: From `probe`; None where it was not asked.
    """
    kinds = [kind for kind in keep if kind != "all"]
    variants = max((len(run.variants) for run in runs.values()), default=0) * len(kinds)
    measured = facts["measured_steps"]
    seconds, basis = _seconds_a_run(store, runs, facts["steps"], measured + variants, probed)
    weights = 0 if facts["given"] else 4 * facts["parameters"]
    kept = measured if "all" in keep else min(measured, len(kinds) + 4)  # a few more are chosen
    failed = failures(store, runs, unfinished)
    return Estimate(
        runs=len(runs),
        done=len(runs) - len(unfinished) - failed,
        failed=failed,
        steps=facts["steps"],
        points=measured + variants,
        seconds=None if seconds is None else seconds * len(unfinished) / max(1, min(workers, len(unfinished))),
        basis=basis,
        disk_bytes=weights * measured * len(runs),
        kept_bytes=weights * kept * len(runs),
    )


def failures(store: Store, runs: Mapping[str, RunPlan], unfinished: Sequence[RunPlan]) -> int:
    """How many runs failed and are not tried again."""
    waiting = {run.key for run in unfinished}
    return sum((store.result(key) or {}).get("status") == "failed" for key in runs if key not in waiting)


def tally(done: int, failed: int, left: int) -> str:
    """How far a study is, in words: ``6 runs: 4 done, 1 failed, 1 to do``."""
    parts = {"done": done, "failed": failed, "to do": left}
    said = ", ".join(f"{count} {what}" for what, count in parts.items() if count)
    return f"{counted(done + failed + left, 'run')}: {said}"


def _seconds_a_run(
    store: Store, runs: Mapping[str, RunPlan], steps: int, points: int, probed: Mapping[str, float] | None
) -> tuple[float | None, str]:
    results = [store.result(key) for key in runs]
    known = [result["seconds"] for result in results if result and result["status"] == "done"]
    if known:
        return statistics.mean(known), f"{counted(len(known), 'run')} done before"
    if probed is None:
        return None, "not known before the first run is done"
    return steps * probed["step_seconds"] + points * probed["measure_seconds"], f"{PROBED_STEPS} steps tried out"


def probe(bench: Bench) -> dict[str, float]:
    """Tries out a few steps and one measurement; nothing of it is kept."""
    started = time.perf_counter()
    measure(bench.initial, "validation")
    seconds = time.perf_counter() - started
    if bench.spec.algorithm is None:
        return {"step_seconds": 0.0, "measure_seconds": seconds}
    with tempfile.TemporaryDirectory() as folder:
        trainer = training.make_trainer(
            bench.spec.algorithm.name,
            {**bench.arguments, "max_steps": PROBED_STEPS},
            task=bench.task,
            seed=0,
            output_dir=Path(folder),
        )
        outcome = training.train(trainer, every=PROBED_STEPS)
    return {"step_seconds": outcome.train_seconds / PROBED_STEPS, "measure_seconds": seconds}
