"""One run: training with measurements along the way, then variants of what it kept, then its result.

1. Train from the start, or from the last state of an interrupted run; at every moment that is observed the weights and
   what was measured on them are kept.
2. Make and measure the variants that the arms want of the kept checkpoints (see `studies.variants`).
3. Write the result, last; remove the resume state.

Every part looks at what is there and does the rest, so that any of them may be killed and called again.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Sequence
from typing import Any

from .. import training
from ..checkpoints import save_model
from ..errors import RunFailed, StoreError, Unsupported, UsageError
from ..measuring import measure
from ..measuring.suite import SPLITS
from .arms import RunPlan, described
from .bench import Bench
from .events import Listener
from .notes import heard
from .points import Point, Points, point_name
from .progress import Reporter
from .store import VERSION, WRITING, Store, clean, disk_full, locked, remove, write_atomic, write_json
from .variants import make_variants, measure_point

WHOLE = ("plain", "ddp")  # backends under which every process holds all weights


def measure_initial(bench: Bench, store: Store) -> None:
    """Measures the initial model on both splits, where that has not been done."""
    if store.initial_result() is not None:
        return
    points = Points()
    point = {"name": "initial", "step": 0, "variant": None, "phase": None, "steps_since_reset": None, "weights": None}
    points.put(point, {split: measure(bench.initial, split) for split in SPLITS})
    points.save(store.initial, {"version": VERSION})


def execute_run(bench: Bench, store: Store, run: RunPlan, listen: Listener) -> None:
    """Does of a run whatever is not done yet.

    A run that cannot go on leaves a result with status "failed" and the reason. Under a launcher of several processes
    every process calls this; the first measures and writes, the others train along.

    Raises:
        UsageError: What was given is wrong for every run, or the disk is full; nothing is recorded.
    """
    if not is_first():
        _train_along(bench, store, run)
        return
    directory = store.run(run.key)
    with locked(directory / ".lock", what=f"run {run.key}"):
        reporter = Reporter(bench, store, run, listen)
        try:
            with heard(reporter.warn):
                _do(bench, store, run, reporter)
        except Exception as error:
            if isinstance(error, UsageError) and not reporter.started:
                raise
            if isinstance(error, StoreError) or disk_full(error):
                raise StoreError(_one_line(error)) from error
            record_failure(store, run, why=_one_line(error), details=traceback.format_exc(), notes=reporter.warnings)
            reporter.failed(_one_line(error))
        else:
            reporter.done()


def _do(bench: Bench, store: Store, run: RunPlan, reporter: Reporter) -> None:
    result = store.result(run.key)
    if result is None or result["status"] == "failed":
        _make(bench, store, run, reporter)
    else:
        _add_variants(bench, store, run, result, reporter)


def record_failure(store: Store, run: RunPlan, *, why: str, details: str = "", notes: Sequence[str] = ()) -> None:
    """Keeps a run that stopped, with its reason; what it had measured before is of no use and goes."""
    directory = store.run(run.key)
    for name in ("resume", "weights"):
        remove(directory / name)
    for name in ("progress.json", "progress.npz"):
        (directory / name).unlink(missing_ok=True)
    if details:
        write_atomic(directory / "error.txt", details.encode())
    about = {"version": VERSION, "key": run.key, "status": "failed", "why": why, "seed": run.seed}
    costs = {"seconds": None, "train_seconds": None, "peak_bytes": None}
    content = {"methods": described(run.training), "notes": list(notes), "points": [], **costs}
    write_json(directory / "result.json", {**about, **content})


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, UsageError | RunFailed) else f"{type(error).__name__}: {text}"


def _make(bench: Bench, store: Store, run: RunPlan, reporter: Reporter) -> None:
    directory = store.run(run.key)
    for name in ("result.json", "error.txt"):  # of a try that failed
        (directory / name).unlink(missing_ok=True)
    clean(directory)
    points = Points.load_progress(directory)
    reporter.warnings = points.notes
    started = time.perf_counter() - points.seconds
    if points.outcome is None:
        trained = _measure_given if bench.aligned else _train
        points.outcome = trained(bench, store, run, points, started, reporter)
        points.save_progress(directory)
    make_variants(bench, store, run, points, reporter)
    about = {"version": VERSION, "key": run.key, "status": "done", "why": None, "seed": run.seed}
    costs = {"seconds": time.perf_counter() - started, **points.outcome}
    points.save(directory, {**about, "methods": described(run.training), **costs})
    remove(directory / "resume")


# --- 1. Training ---------------------------------------------------------------------------------------------------


def _train(
    bench: Bench, store: Store, run: RunPlan, points: Points, started: float, reporter: Reporter
) -> dict[str, Any]:
    directory = store.run(run.key)
    trainer, attached = _trainer(bench, store, run)
    reporter.follow(trainer)

    def observe(moment: training.Moment) -> None:
        model: Any = moment.model
        points.drop_from(moment.step, moment.phase)
        point = _point(point_name(moment.step, moment.phase), moment.step, moment.phase, moment.steps_since_reset)
        with WRITING:
            save_model(model, bench.tokenizer, directory / point["weights"])
        measure_point(bench, points, point, model, SPLITS if moment.step == bench.steps else SPLITS[:1])
        points.seconds = time.perf_counter() - started
        points.save_progress(directory)
        reporter.measured(points.points[-1])

    outcome = training.train(
        trainer,
        attached,
        every=bench.every,
        observe=observe,
        log=directory / "metrics.jsonl",
        resume_dir=directory / "resume" if trainer.args.world_size == 1 else None,
        checkpoint_every=bench.spec.checkpoint_every,
    )
    return {"train_seconds": outcome.train_seconds, "peak_bytes": outcome.peak_bytes}


def _trainer(bench: Bench, store: Store, run: RunPlan) -> tuple[Any, training.Attached]:
    assert bench.spec.algorithm is not None
    trainer = training.make_trainer(
        bench.spec.algorithm.name,
        bench.arguments,
        task=bench.task,
        seed=run.seed,
        output_dir=store.run(run.key) / "resume",
        methods=run.training,
    )
    attached = training.join(trainer, training.with_delta(run.training, bench.task))
    if trainer.args.world_size > 1 and bench.spec.checkpoint_every is not None:
        raise Unsupported("checkpoint_every serves one process; leave it out where a launcher starts several")
    if (backend := attached.describe()["backend"]) not in WHOLE:
        raise Unsupported(f"a study measures whole models, which {backend} takes apart; launch with DDP, or on one GPU")
    return trainer, attached


def _train_along(bench: Bench, store: Store, run: RunPlan) -> None:
    """The part of a launcher's other processes; the first one decides by the same files whether there is training."""
    result = store.result(run.key)
    if bench.aligned or (result is not None and result["status"] == "done"):
        return
    if Points.load_progress(store.run(run.key)).outcome is None:
        trainer, attached = _trainer(bench, store, run)
        training.train(trainer, attached, every=bench.every)


def is_first() -> bool:
    """True in the first process of a launcher, and where there is only one."""
    return os.environ.get("RANK", "0") == "0"


def _measure_given(
    bench: Bench, store: Store, run: RunPlan, points: Points, started: float, reporter: Reporter
) -> dict[str, Any]:
    """In the place of training: measures the checkpoints that were trained elsewhere."""
    reporter.started = True
    for step, path in bench.aligned.items():
        point = _point(point_name(step, None), step, None, None) | {"weights": str(path)}
        model = bench.load(path)
        measure_point(bench, points, point, model, SPLITS if step == bench.steps else SPLITS[:1])
        points.seconds = time.perf_counter() - started
        points.save_progress(store.run(run.key))
        reporter.measured(points.points[-1])
    return {"train_seconds": None, "peak_bytes": None}


def _point(name: str, step: int, phase: str | None, steps_since_reset: int | None) -> Point:
    since = {"phase": phase, "steps_since_reset": steps_since_reset}
    return {"name": name, "step": step, "variant": None, **since, "weights": f"weights/{name}"}


# --- 2. Variants of arms that came later ------------------------------------------------------------------------------


def _add_variants(bench: Bench, store: Store, run: RunPlan, result: dict[str, Any], reporter: Reporter) -> None:
    """Adds to a complete run the variants of arms that came later."""
    directory = store.run(run.key)
    reporter.started = True
    points = Points.load(directory)
    reporter.warnings = points.notes
    known = len(points.points)
    make_variants(bench, store, run, points, reporter)
    if len(points.points) > known:
        points.save(directory, {key: value for key, value in result.items() if key not in ("points", "notes")})
