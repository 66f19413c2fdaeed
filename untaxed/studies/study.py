"""A study from its spec to its summary, resumable at every point.

1. Everything is checked before anything is written.
2. ``study.json`` says what the study is; a directory that holds another study is refused.
3. The initial model is measured; every run that is not done is done.
4. What validation chose is measured on test, the summary is written, weights that nobody needs are removed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SpecError, UntaxedError
from ..method import Context, Method
from .arms import ArmPlan, RunPlan, check_arms, plan_arms, plan_runs, run_key, variant, variant_name
from .estimate import Estimate, estimate
from .events import Event, Listener, ignore
from .jobs import Crash, Crew, Inline, Job
from .record import compare, describe, record
from .results import load_results
from .runs import is_first, prune, record_failure
from .spec import StudySpec, load_spec, parse_spec
from .store import Store, check_directory, locked, read_json
from .summary import chosen_points, wanted_tests, write_summary
from .workers import default_workers, open_crew


@dataclass(frozen=True)
class Study:
    """A study on disk.

    Attributes:
        directory: Where its files lie.
        failed: Its runs that failed, each with the reason.
    """

    directory: Path
    failed: list[dict[str, Any]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The numbers of the study, as ``summary.json`` holds them."""
        return dict(read_json(Store(self.directory).summary))

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
        unfinished = work.unfinished()
        probed = None
        if unfinished and len(unfinished) == len(work.runs):
            progress(Event("note", text="trying out a few steps"))
            [probed] = work.do(crew, [work.job("probe")])
    count = default_workers(spec) if workers is None else workers
    cost = estimate(work.store, work.runs, unfinished, work.facts, keep=spec.keep, workers=count, probed=probed)
    return [f"{run.key}  {work.label(run)}" for run in unfinished], cost


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


class Work:
    """What is to be done for one study.

    Attributes:
        store: Its files.
        arms: Its arms.
        facts: What the task is, once prepared.
        runs: The runs that its arms need, by key.
    """

    def __init__(
        self, spec: StudySpec, out: str | Path | None, *, retry_failed: bool = False, listen: Listener = ignore
    ) -> None:
        self.spec = spec
        self.store = Store(Path(out or re.sub(r"[^\w.-]+", "-", spec.name)).absolute())
        self.arms = plan_arms(spec.methods)
        self.facts: dict[str, Any] = {}
        self.runs: dict[str, RunPlan] = {}
        self._retry_failed = retry_failed
        self._listen = listen
        check_directory(self.store.directory)
        if not spec.algorithm:
            check_arms(self.arms, Context(None, None, has_pretrained=spec.models.pretrained is not None))

    # --- 1, 2 ------------------------------------------------------------------------------------------------------

    def prepare(self, crew: Crew) -> None:
        """Has the task made and checked, and the directory's own study compared; nothing is written there."""
        self._listen(Event("note", text="checking models, data and methods"))
        self.facts = self.do(crew, [self.job("prepare")] * crew.size)[0]  # every worker makes itself ready
        self.runs = plan_runs(self.arms, self.spec.seeds, self.facts["identity"])
        compare(self.store, self.described())

    def described(self) -> dict[str, Any]:
        """What the study is, as ``study.json`` holds it."""
        return describe(self.spec, self.facts, [self._entry(arm) for arm in self.arms])

    @contextmanager
    def begun(self, *, shared: bool = False) -> Iterator[None]:
        """Holds the study's directory while the block works in it, and says there what the study is."""
        self.store.create()
        with locked(self.store.directory / ".lock", what=f"study {self.store.directory}", shared=shared):
            record(self.store, self.described())
            yield

    def _entry(self, arm: ArmPlan) -> dict[str, Any]:
        """An arm as ``study.json`` holds it."""
        settings = [
            {
                "setting": setting.label,
                "values": dict(setting.values),
                "variant": variant(setting.after),
                "runs": {seed: run_key(self.facts["identity"], setting.training, seed) for seed in self.spec.seeds},
            }
            for setting in arm.settings
        ]
        kind = {"plain": arm.plain, "early_stopping": arm.early_stopping}
        return {"arm": arm.label, "methods": arm.written, **kind, "settings": settings}

    # --- 3 ---------------------------------------------------------------------------------------------------------

    def measure_initial(self, crew: Crew) -> None:
        """Measures the initial model, where that has not been done."""
        if not (self.store.initial / "result.json").exists():
            self._listen(Event("note", text="measuring the initial model"))
            self.do(crew, [self.job("initial")])

    def unfinished(self) -> list[RunPlan]:
        """The runs that have something left to do, those with most of it first."""
        left = [run for run in self.runs.values() if self._left(run)]
        return sorted(left, key=self._left, reverse=True)

    def _left(self, run: RunPlan) -> int:
        """How much of a run is left: its training counts as much as a hundred variants."""
        result = self.store.result(run.key)
        if result is None or (result["status"] == "failed" and self._retry_failed):
            return 100 + len(run.variants)
        if result["status"] == "failed":
            return 0
        names = {point["name"] for point in result["points"]}
        wanted = {variant_name(after, of) for after in run.variants for of in self.spec.keep if of != "all"}
        return len(wanted - names)

    def make_runs(self, crew: Crew) -> None:
        """Does every unfinished run; one that crashes its worker is recorded as failed."""
        unfinished = self.unfinished()
        if unfinished:
            self.store.summary.unlink(missing_ok=True)  # it will not hold any more
        self._listen(Event("note", text=f"{len(self.runs)} runs, {len(self.runs) - len(unfinished)} of them done"))
        for run in unfinished:
            self._listen(Event("plan", run.key, self.label(run), steps=self.facts["steps"]))
        results = crew.run([self.job("run", key=run.key) for run in unfinished], self._listen)
        for run, result in zip(unfinished, results):
            if isinstance(result, Crash):
                record_failure(self.store, run, why=result.why, details=result.log)
                self._listen(Event("failed", run.key, result.why))

    def label(self, run: RunPlan) -> str:
        """A run in words: its methods, their settings where these are not the default, its seed."""
        return f"{' + '.join(map(_in_words, run.training)) or 'plain'}, seed {run.seed}"

    # --- 4 ---------------------------------------------------------------------------------------------------------

    def make_tests(self, crew: Crew) -> None:
        """Measures what validation chose on test. A run whose chosen weights are gone is trained again first."""
        if self._again():
            self.make_runs(crew)
        wanted = wanted_tests(self.store)
        if wanted:
            self._listen(Event("note", text=f"measuring {sum(map(len, wanted.values()))} chosen points on test"))
        self.do(crew, [self.job("test", key=key, points=points) for key, points in wanted.items()])

    def _again(self) -> list[str]:
        """Sets back the runs whose newly chosen points have lost their weights, as `keep` without `all` may do."""
        again = []
        for key, names in wanted_tests(self.store).items():
            result = self.store.result(key)
            points = [point for point in result["points"] if point["name"] in names] if result else []
            if any(point["variant"] is None and not self._has_weights(key, point) for point in points):
                self._listen(Event("note", text=f"{self.label(self.runs[key])}: trained again for weights not kept"))
                (self.store.run(key) / "result.json").unlink()
                again.append(key)
        return again

    def _has_weights(self, key: str, point: Mapping[str, Any]) -> bool:
        return point["weights"] is not None and (self.store.run(key) / point["weights"]).is_dir()

    def finish(self) -> dict[str, Any]:
        """Writes the summary and removes the weights that are neither kept nor chosen."""
        summary = write_summary(self.store)
        if "all" not in self.spec.keep:
            chosen = chosen_points(self.store)
            for key in self.runs:
                prune(self.store, key, kinds=self.spec.keep, chosen=chosen.get(key, set()))
        return summary

    # ---------------------------------------------------------------------------------------------------------------

    def job(self, name: str, **about: Any) -> Job:
        """A job of this study."""
        return {"job": name, "spec": self.spec.resolved(), "out": str(self.store.directory), **about}

    def do(self, crew: Crew, jobs: list[Job]) -> list[Any]:
        """Does jobs none of which may be lost."""
        results = crew.run(jobs, self._listen)
        for result in results:
            if isinstance(result, Crash):
                raise UntaxedError(f"a worker stopped: {result.why}; what was finished is kept, so try again")
        return results


def _in_words(method: Method) -> str:
    defaults = {field.name: field.default for field in dataclasses.fields(method)}
    given = [f"{key}={value}" for key, value in method.settings().items() if value != defaults[key]]
    return " ".join([method.name, *given])
