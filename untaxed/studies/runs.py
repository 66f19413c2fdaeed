"""One run: training with measurements along the way, then variants of what it kept, then its result.

1. Train from the start, or from the last state of an interrupted run; at every moment that is observed the weights and
   what was measured on them are kept.
2. Make and measure the variants that the arms want of the kept checkpoints (see `studies.variants`).
3. Write the result, last; remove the resume state. Variants of arms that come later are added to it one by one, and so
   are those that are made of several runs, when all of these have ended.

Every part looks at what is there and does the rest, so that any of them may be killed and called again.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from typing import Any

from .. import training
from ..checkpoints import save_model
from ..errors import RunFailed, StoreError, Unsupported, UsageError
from ..measuring import measure
from ..measuring.suite import SPLITS
from .arms import RunPlan
from .bench import Bench
from .endings import (
    Lacking,
    lacking_in_words,
    lacks_weights,
    noted_otherwise,
    one_line,
    record_failure,
    save_complete,
)
from .events import Listener
from .notes import heard
from .points import Point, Points, point_name
from .progress import Reporter
from .store import VERSION, WRITING, Store, clean, disk_full, locked, no_room
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


def execute_run(
    bench: Bench, store: Store, run: RunPlan, listen: Listener, *, again: bool = False, merging: bool = False
) -> None:
    """Does of a run whatever is not done yet: training and variants of it alone, or the variants of it and its members.

    A run that cannot go on keeps the reason, see `endings.record_failure`. Under a launcher of several processes every
    process calls this; the first measures and writes, the others train along.

    Args:
        again: Whether a complete run is to be trained again, for weights that were not kept.
        merging: Whether it is about the variants of several trainings; the run is complete, and its members have ended.
    Raises:
        UsageError: What was given is wrong for every run, or the disk is full; nothing is recorded.
    """
    if not is_first():
        _train_along(bench, store, run, again)
        return
    directory = store.run(run.key)
    with locked(directory / ".lock", what=f"run {run.key}"):
        reporter = Reporter(bench, store, run, listen)
        try:
            with heard(reporter.warn):
                lacking = _merge(bench, store, run, reporter) if merging else _do(bench, store, run, reporter, again)
        except Exception as error:
            if isinstance(error, UsageError) and not reporter.started:
                raise
            if isinstance(error, StoreError):
                raise
            if disk_full(error):
                raise no_room(directory) from error
            why = record_failure(
                store,
                run,
                why=one_line(error),
                keep=bench.spec.keep,
                details=traceback.format_exc(),
                notes=reporter.warnings,
                final=isinstance(error, RunFailed),
                merging=merging,
            )
            reporter.failed(why)
        else:
            reporter.failed(lacking_in_words(lacking)) if lacking else reporter.done()


def _do(bench: Bench, store: Store, run: RunPlan, reporter: Reporter, again: bool) -> list[Lacking]:
    make = _add_variants if _is_trained(bench, store, run, again) else _make
    return make(bench, store, run, reporter)


def _is_trained(bench: Bench, store: Store, run: RunPlan, again: bool) -> bool:
    """Whether nothing but variants is left to do: those of arms that came later, or that could not be measured."""
    result = store.result(run.key)
    if result is None or result["status"] == "failed" or again:
        return False
    return not lacks_weights(store, run, Points(result["points"]), bench.spec.keep)


def _make(bench: Bench, store: Store, run: RunPlan, reporter: Reporter) -> list[Lacking]:
    directory, earlier = store.run(run.key), store.result(run.key)
    if earlier is not None and earlier["status"] == "failed":
        (directory / "result.json").unlink()
    clean(directory)
    points = _progress(bench, store, run)
    reporter.warnings = points.notes
    started = time.perf_counter() - points.seconds
    if points.outcome is None:
        trained = _nothing if run.of_initial else _measure_given if bench.aligned else _train
        points.outcome = trained(bench, store, run, points, started, reporter)
        points.save_progress(directory)
    if earlier is not None and earlier["status"] == "done" and not points.take_over(Points.load(directory)):
        reporter.warn(f"run {run.key} was trained again and measures otherwise than before: another machine or version")
    keep = _timed(points, lambda: points.save_progress(directory))
    lacking = make_variants(bench, store, run, points, reporter, keep)
    points.seconds = time.perf_counter() - started
    save_complete(store, run, points, lacking)
    return lacking


def _progress(bench: Bench, store: Store, run: RunPlan) -> Points:
    """What an interrupted training left; nothing where it ended and its weights are gone since."""
    points = Points.load_progress(store.run(run.key))
    if points.outcome is None or not lacks_weights(store, run, points, bench.spec.keep):
        return points
    return Points()


def _add_variants(bench: Bench, store: Store, run: RunPlan, reporter: Reporter) -> list[Lacking]:
    reporter.started = True
    points = Points.load(store.run(run.key))
    reporter.warnings = points.notes
    keep = _timed(points, lambda: save_complete(store, run, points))
    if lacking := make_variants(bench, store, run, points, reporter, keep):
        save_complete(store, run, points, lacking)
    return lacking


def _merge(bench: Bench, store: Store, run: RunPlan, reporter: Reporter) -> list[Lacking]:
    reporter.started = True
    points, others = Points.load(store.run(run.key)), noted_otherwise(store, run, bench.spec.keep)
    reporter.warnings = points.notes
    keep = _timed(points, lambda: save_complete(store, run, points, others))
    if lacking := make_variants(bench, store, run, points, reporter, keep, merges=True):
        save_complete(store, run, points, [*others, *lacking])
    return lacking


def _timed(points: Points, save: Callable[[], None]) -> Callable[[], None]:
    """Saves points with the time that has gone into them."""
    started = time.perf_counter() - points.seconds

    def saving() -> None:
        points.seconds = time.perf_counter() - started
        save()

    return saving


# --- 1. Training ---------------------------------------------------------------------------------------------------


def _train(
    bench: Bench, store: Store, run: RunPlan, points: Points, started: float, reporter: Reporter
) -> dict[str, Any]:
    directory = store.run(run.key)
    trainer, attached = _trainer(bench, store, run)
    reporter.follow(trainer)
    merged = training.Merged(lambda: bench.load(bench.task.initial))

    def observe(moment: training.Moment) -> None:
        model = merged(moment.model)
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
    methods = training.with_inputs(run.training, bench.task)
    attached = training.join(trainer, training.with_meter(methods, bench.task, steps=bench.steps))
    if trainer.args.world_size > 1 and bench.spec.checkpoint_every is not None:
        raise Unsupported("checkpoint_every serves one process; leave it out where a launcher starts several")
    if (backend := attached.describe()["backend"]) not in WHOLE:
        raise Unsupported(f"a study measures whole models, which {backend} takes apart; launch with DDP, or on one GPU")
    return trainer, attached


def _train_along(bench: Bench, store: Store, run: RunPlan, again: bool) -> None:
    """The part of a launcher's other processes; the first one decides by the same files whether there is training."""
    if bench.aligned or run.of_initial or _is_trained(bench, store, run, again):
        return
    if _progress(bench, store, run).outcome is None:
        trainer, attached = _trainer(bench, store, run)
        training.train(trainer, attached, every=bench.every)


def is_first() -> bool:
    """True in the first process of a launcher, and where there is only one."""
    return os.environ.get("RANK", "0") == "0"


def _nothing(
    bench: Bench, store: Store, run: RunPlan, points: Points, started: float, reporter: Reporter
) -> dict[str, Any]:
    """In the place of training, where the run is about the initial model alone."""
    reporter.started = True
    return {"train_seconds": None, "peak_bytes": None}


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
