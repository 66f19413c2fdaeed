"""What a study will cost before it starts: runs, minutes and disk."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import training
from ..decoding import BestOfN
from ..measuring import measure
from .arms import Chain, RunPlan, writes_weights
from .bench import Bench
from .detectable import detectable, of_store
from .endings import has_weights
from .events import counted
from .store import Store

PROBED_STEPS = 2
SAMPLED = 0.25  # of the time of a measurement, about so much draws and rates a response a prompt
CHOSEN = 0.75  # of what is measured, about so much is chosen by some arm and tested


@dataclass(frozen=True)
class Estimate:
    """What is to be done.

    Attributes:
        runs: Trainings (or rows of given checkpoints) in all.
        done: Those that are done already.
        failed: Those that failed and are not tried again.
        steps: Optimizer steps a run.
        points: Models measured on validation in what is left, variants included, at most in one run.
        searched: Models beside them that methods measure to find their variants, about and at most in one run.
        seconds: Wall time of what is left; None while nothing is known.
        basis: What the time was estimated from.
        disk_bytes: Most that lies on disk at a time, the trainer's own state left aside.
        kept_bytes: Least that stays: what `keep` names. Checkpoints and variants that are chosen stay too.
        detectable: The least loss of each ability that the items will probably show: rows of `studies.detectable`.
    """

    runs: int
    done: int
    failed: int
    steps: int
    points: int
    searched: int
    seconds: float | None
    basis: str
    disk_bytes: int
    kept_bytes: int
    detectable: list[dict[str, Any]] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Rest:
    """What is left of one run.

    Attributes:
        trains: Whether it is trained.
        trained: Models measured then.
        variants: Models measured after.
        member: Whether none of them is chosen.
        searched: Models measured to find variants.
        saved: Variants that have weights.
        passes: Models that measuring the variants is worth: one that writes with two models counts twice.
    """

    trains: bool
    trained: int
    variants: int
    member: bool
    searched: int
    saved: int
    passes: float

    @property
    def measured(self) -> float:
        """Models measured, by what they cost: on validation, the last step and what is chosen on test too."""
        if self.member:
            return self.trained + self.trains
        return (self.trained + self.passes) * (1 + CHOSEN) + self.searched


def estimate(
    store: Store,
    runs: Mapping[str, RunPlan],
    unfinished: Sequence[RunPlan],
    facts: Mapping[str, Any],
    *,
    trained: Collection[str],
    keep: Sequence[str],
    workers: int,
    probed: Mapping[str, Any] | None,
) -> Estimate:
    """Estimates from the runs that are done, or else from a probe.

    Args:
        store: The study's files, which need not exist.
        runs: All runs.
        unfinished: Those with something left to do.
        facts: Of the prepared task.
        trained: Keys of the unfinished runs that are trained; of the others only variants are left.
        keep: The kept checkpoints.
        workers: Runs that are done side by side.
        probed: From `probe`; None where it was not asked.
    """
    rest = [_rest(store, run, facts, keep, trains=run.key in trained) for run in unfinished]
    costs, basis = _costs(store, runs, facts["steps"], probed)
    seconds = [costs[0] * one.trains + costs[1] * one.measured for one in rest] if costs else None
    side_by_side = max(1, min(workers, len(rest)))
    failed = failures(store, runs, unfinished)
    there = sum(_saved(store, run) for run in runs.values() if run.key not in trained)
    weights = 4 * facts["parameters"]
    return Estimate(
        runs=len(runs),
        done=len(runs) - len(unfinished) - failed,
        failed=failed,
        steps=facts["steps"],
        points=max((one.trained + one.variants for one in rest), default=0),
        searched=max((one.searched for one in rest), default=0),
        seconds=None if seconds is None else max([sum(seconds) / side_by_side, *seconds]),
        basis=basis,
        disk_bytes=weights * (there + sum(_own(one, facts) + one.saved for one in rest)),
        detectable=of_store(store, facts) or (probed or {}).get("detectable", []),
        kept_bytes=weights * (there + sum(_own(one, facts) if "all" in keep else _own(one, facts) > 0 for one in rest)),
    )


def _rest(store: Store, run: RunPlan, facts: Mapping[str, Any], keep: Sequence[str], *, trains: bool) -> _Rest:
    result = store.result(run.key)
    names = {point["name"] for point in result["points"]} if result and not trains else set()
    left = [after for after, _, name in run.wanted(keep) if name not in names]
    return _Rest(
        trains=trains,
        trained=measured_models(run, facts) if trains else 0,
        variants=len(left),
        member=run.member is not None,
        searched=sum(method.measurements for after in left for method in after),
        saved=sum(map(writes_weights, left)),
        passes=_responses(left) * SAMPLED if run.of_initial else sum(_passes(after) for after in left),
    )


def _passes(after: Chain) -> int:
    return math.prod(method.decoding_cost for method in after)


def _responses(left: Sequence[Chain]) -> int:
    """How many responses a prompt are drawn for all variants of the initial model together."""
    return max((method.samples for after in left for method in after if isinstance(method, BestOfN)), default=0)


def measured_models(run: RunPlan, facts: Mapping[str, Any]) -> int:
    """How often a run is measured while it trains; each reset is measured before and after."""
    if facts["given"]:
        return int(facts["measured_steps"])
    steps, every = facts["steps"], facts["every"]
    resets = {
        step
        for method in run.training
        if (due := method.settings().get("reset_every"))
        for step in range(due, steps, due)
    }
    return len({*range(every, steps, every), steps} | resets) + len(resets)


def _own(rest: _Rest, facts: Mapping[str, Any]) -> int:
    """Checkpoints that training writes; given ones lie elsewhere."""
    return 0 if facts["given"] else rest.trained


def _saved(store: Store, run: RunPlan) -> int:
    """The models that a run has on disk."""
    points = (store.result(run.key) or {"points": []})["points"]
    own = (point for point in points if str(point["weights"]).startswith("weights/"))
    return sum(has_weights(store, run.key, point) for point in own)


def failures(store: Store, runs: Mapping[str, RunPlan], unfinished: Sequence[RunPlan]) -> int:
    """How many runs failed and are not tried again."""
    waiting = {run.key for run in unfinished}
    return sum((store.result(key) or {}).get("status") == "failed" for key in runs if key not in waiting)


def tally(done: int, failed: int, left: int) -> str:
    """How far a study is, in words: ``6 runs: 4 done, 1 failed, 1 to do``."""
    parts = {"done": done, "failed": failed, "to do": left}
    said = ", ".join(f"{count} {what}" for what, count in parts.items() if count)
    return f"{counted(done + failed + left, 'run')}: {said}"


def _costs(
    store: Store, runs: Mapping[str, RunPlan], steps: int, probed: Mapping[str, Any] | None
) -> tuple[tuple[float, float] | None, str]:
    """Seconds of one training and of one measurement on one split, and where they are known from."""
    results = [store.result(key) for key, run in runs.items() if not run.of_initial]
    known = [result for result in results if result and result["status"] == "done" and result["seconds"]]
    if known:
        training = [result["train_seconds"] or 0.0 for result in known]
        measuring = [(one["seconds"] - spent) / _measured(one) for one, spent in zip(known, training)]
        costs = statistics.mean(training), max(0.0, statistics.mean(measuring))
        return costs, f"{counted(len(known), 'run')} done before"
    if probed is None:
        return None, "not known before the first run is done"
    return (steps * probed["step_seconds"], probed["measure_seconds"]), f"{PROBED_STEPS} steps tried out"


def _measured(result: Mapping[str, Any]) -> int:
    """What a complete run measured; the last step on test too, and of equal variants one."""
    found = {json.dumps(point["found"]): point["found"] for point in result["points"] if "found" in point}
    return len(result["points"]) + 1 + sum(one["measurements"] for each in found.values() for one in each)


def probe(bench: Bench) -> dict[str, Any]:
    """Tries out a few steps and one measurement, which also tells what the items can show; nothing of it is kept."""
    started = time.perf_counter()
    reading = measure(bench.initial, "validation")
    seconds = time.perf_counter() - started
    found = {"measure_seconds": seconds, "detectable": detectable(bench.facts(), reading.scores, "validation")}
    if bench.spec.algorithm is None:
        return {"step_seconds": 0.0, **found}
    with tempfile.TemporaryDirectory() as folder:
        trainer = training.make_trainer(
            bench.spec.algorithm.name,
            {**bench.arguments, "max_steps": PROBED_STEPS},
            task=bench.task,
            seed=0,
            output_dir=Path(folder),
        )
        outcome = training.train(trainer, every=PROBED_STEPS)
    return {"step_seconds": outcome.train_seconds / PROBED_STEPS, **found}
