"""A study from its spec to its summary, resumable at every point.

1. Everything is checked before anything is written.
2. ``study.json`` says what the study is; a directory that holds another study is refused.
3. The initial model is measured; every run that is not done is done.
4. What validation chose is measured on test, the summary is written, weights that nobody needs are removed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SpecError
from .estimate import Estimate, estimate
from .events import Event, Listener, ignore
from .jobs import Inline
from .results import load_results
from .runs import is_first
from .spec import StudySpec, load_spec, parse_spec
from .store import Store
from .work import Work
from .workers import default_workers, open_crew


@dataclass(frozen=True)
class Study:
    """A study on disk.

    Attributes:
        directory: Where its files lie.
        failed: Its runs that failed or lack variants, each with the reason.
    """

    directory: Path
    failed: list[dict[str, Any]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The numbers of the study, as ``summary.json`` holds them."""
        return Store(self.directory).read_summary()

    def results(self) -> list[dict[str, Any]]:
        """Every measured point as a dict."""
        return load_results(self.directory)


def run_study(
    spec: StudySpec | Mapping[str, Any] | str | Path,
    out: str | Path | None = None,
    workers: int | None = None,
    progress: Listener = ignore,
    *,
    retry_failed: bool = False,
) -> Study:
    """Runs a study, or what is left of it, and writes its summary.

    Args:
        spec: The study: a YAML file, its content, or what `load_spec` returned.
        out: Its directory, created or gone on with; None: a folder of the study's name.
        workers: Processes; 0: this one; None: as many as suit machine and model.
        progress: Is told what happens.
        retry_failed: Whether runs that failed are tried again.
    Raises:
        UsageError: What was given is wrong: one line, and nothing was written.
        UntaxedError: The work failed.
    """
    spec = _as_spec(spec)
    work = Work(spec, out, retry_failed=retry_failed, listen=progress)
    with open_crew(spec, workers) as crew:
        work.prepare(crew)
        work.try_building(crew)
        with work.begun():
            work.measure_initial(crew)
            work.make_runs(crew)
            work.make_tests(crew)
            summary = work.finish()
    return Study(work.store.directory, summary["failed"])


def planned(
    spec: StudySpec | Mapping[str, Any] | str | Path,
    out: str | Path | None = None,
    workers: int | None = None,
    progress: Listener = ignore,
) -> tuple[list[str], Estimate]:
    """Checks a study as `run_study` would, starts nothing, and says what is left to do and what it will cost.

    Returns:
        Key and label of every unfinished run, and the estimate.
    """
    spec = _as_spec(spec)
    work = Work(spec, out, listen=progress)
    with open_crew(spec, workers) as crew:
        work.prepare(crew)
        work.try_building(crew)
        unfinished = work.unfinished()
        probed = None
        trained = {run.key for run in unfinished if work.to_train(run)}
        if unfinished and not work.any_done():
            progress(Event("note", text="trying out a few steps"))
            [probed] = work.do(crew, [work.job("probe")])
    count = default_workers(spec) if workers is None else workers
    cost = estimate(
        work.store,
        work.runs,
        unfinished,
        work.facts,
        trained=trained,
        keep=spec.keep,
        workers=count,
        probed=probed,
    )
    return [f"{run.key}  {work.to_do(run)}" for run in unfinished], cost


def align(spec: StudySpec, key: str, out: str | Path, progress: Listener = ignore) -> dict[str, Any]:
    """Does one run of a study in this process.

    Args:
        spec: The study.
        key: The run's key, or a beginning of it that no other run has.
        out: The study's directory, created where it is missing.
        progress: Is told what happens.
    Returns:
        The run's result; "elsewhere" as its status in the other processes of a launcher.
    Raises:
        SpecError: The study has no such run.
    """
    work, crew = Work(spec, out, listen=progress), Inline()
    work.prepare(crew)
    found = [run for run in work.runs.values() if run.key.startswith(key)]
    if len(found) != 1:
        known = "; ".join(f"{run.key} ({work.label(run)})" for run in work.runs.values())
        raise SpecError(f"--run {key}: {'several runs begin so' if found else 'no such run'}; known: {known}")
    job = work.job("run", key=found[0].key)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # a launcher's processes would have to build it together
        work.try_building(crew)
    if not is_first():
        work.do(crew, [job])
        return {"key": found[0].key, "status": "elsewhere"}
    with work.begun(shared=True):
        work.measure_initial(crew)
        progress(Event("plan", found[0].key, work.label(found[0]), steps=work.facts["steps"]))
        work.do(crew, [job])
    return work.store.result(found[0].key) or {}


def _as_spec(spec: StudySpec | Mapping[str, Any] | str | Path) -> StudySpec:
    if isinstance(spec, StudySpec):
        return spec
    return parse_spec(spec) if isinstance(spec, Mapping) else load_spec(spec)
