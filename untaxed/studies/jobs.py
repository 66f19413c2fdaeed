"""The parts of a study that are done in a worker, or one after another in the study's own process.

A job is plain JSON: ``{"job": …, "spec": …, "out": …}`` with ``key`` and ``points`` where it is about one run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..checkpoints import load_model
from ..errors import RunFailed, UntaxedError, last_line
from ..training import ALGORITHMS, make_trainer, with_inputs
from ..training.host import policy
from .bench import Bench, prepare
from .cache import told
from .estimate import probe
from .events import Event, Listener
from .notes import heard
from .runs import execute_run, measure_initial
from .spec import parse_spec
from .store import Store, disk_full, no_room
from .variants import measure_test

Job = Mapping[str, Any]


@dataclass(frozen=True)
class Crash:
    """A worker died over a job."""

    why: str
    log: str


class Crew(Protocol):
    """Whoever does jobs: workers, or this process.

    Attributes:
        size: How many jobs are done side by side.
    """

    size: int

    def run(self, jobs: Sequence[Job], listen: Listener) -> list[Any]:
        """Does all jobs, in any order; what each one returned, or its `Crash`. A user's error is raised."""


class Inline:
    """Does jobs in this process, one after another; what they share is built once."""

    size = 1

    def __init__(self) -> None:
        self._spec: Any = None
        self._bench: Bench | None = None

    def run(self, jobs: Sequence[Job], listen: Listener) -> list[Any]:
        return [self.do(job, listen) for job in jobs]

    def do(self, job: Job, listen: Listener) -> Any:
        """Does one job; a disk that is full is the user's matter, whoever finds it out."""
        try:
            return JOBS[job["job"]](self._bench_of(job["spec"], listen), Store(Path(job["out"])), job, listen)
        except Exception as error:
            if disk_full(error) and not isinstance(error, UntaxedError):
                raise no_room(Path(getattr(error, "filename", None) or job["out"])) from error
            raise

    def _bench_of(self, spec: Any, listen: Listener) -> Bench:
        if self._bench is None or spec != self._spec:
            with told(lambda text: listen(Event("note", text=text))):
                self._bench = prepare(parse_spec(spec))
            self._spec = spec
        return self._bench


def _prepare(bench: Bench, store: Store, job: Job, listen: Listener) -> Any:
    if bench.spec.algorithm is not None:
        ALGORITHMS[bench.spec.algorithm.name].trainer_class()  # takes seconds to import: all workers at once
    return bench.facts()


def _build(bench: Bench, store: Store, job: Job, listen: Listener) -> None:
    """Builds a trainer, or loads the given checkpoints, for nothing: what cannot be used shows before any work."""
    if bench.spec.algorithm is None:
        for path in bench.aligned.values():
            load_model(path)
        return
    with heard(lambda text: listen(Event("warning", text=text))), tempfile.TemporaryDirectory() as folder:
        name = bench.spec.algorithm.name
        trainer = make_trainer(name, bench.arguments, task=bench.task, seed=0, output_dir=folder)
        settings = [setting for arm in bench.arms for setting in arm.settings]
        for method in with_inputs([method for setting in settings for method in setting.training], bench.task):
            method.check_model(policy(trainer))


def _initial(bench: Bench, store: Store, job: Job, listen: Listener) -> None:
    measure_initial(bench, store)


def _run(bench: Bench, store: Store, job: Job, listen: Listener) -> None:
    execute_run(bench, store, bench.runs[job["key"]], listen, again=job.get("again", False))


def _merge(bench: Bench, store: Store, job: Job, listen: Listener) -> None:
    execute_run(bench, store, bench.runs[job["key"]], listen, merging=True)


def _test(bench: Bench, store: Store, job: Job, listen: Listener) -> None:
    measure_test(bench, store, bench.runs[job["key"]], job["points"], listen)


def _probe(bench: Bench, store: Store, job: Job, listen: Listener) -> dict[str, Any]:
    with heard(lambda text: listen(Event("warning", text=text))):
        try:
            return probe(bench)
        except UntaxedError:
            raise
        except Exception as error:  # a study would record it as the failure of its run
            raise RunFailed(f"trying out a few steps: {type(error).__name__}: {last_line(error)}") from error


JOBS: Mapping[str, Callable[[Bench, Store, Job, Listener], Any]] = {
    "prepare": _prepare,
    "build": _build,
    "initial": _initial,
    "run": _run,
    "merge": _merge,
    "test": _test,
    "probe": _probe,
}
