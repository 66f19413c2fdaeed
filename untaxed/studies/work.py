"""What is to be done for one study, step by step; `studies.study` puts the steps together."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ..errors import UntaxedError
from ..method import Method
from ..sites import Context, Need
from .arms import ArmPlan, RunPlan, check_arms, member_keys, plan_arms, plan_runs, setting_key, trainings, variant
from .begin import begun
from .endings import has_weights, lacks_kept, lacks_weights, record_failure
from .estimate import failures, tally
from .events import Event, Listener, counted, ignore
from .jobs import Crash, Crew, Job
from .notes import each_warning_once
from .points import Points
from .record import compare, describe, put_aside, put_aside_in_words
from .sound import check_results
from .spec import StudySpec
from .store import Store, check_directory
from .summary import chosen_points, wanted_tests, write_summary
from .variants import prune, sources


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
        self._again: set[str] = set()  # complete runs that are to be trained again
        self._retry_failed = retry_failed
        self._listen = each_warning_once(listen)
        check_directory(self.store.directory)
        if not spec.algorithm:
            given: frozenset[Need] = frozenset({"pretrained"} if spec.models.pretrained else ())
            check_arms(self.arms, Context(None, None, given=given))

    # --- 1, 2 ------------------------------------------------------------------------------------------------------

    def prepare(self, crew: Crew) -> None:
        """Has the task made and checked, and the directory's own study compared; nothing is written there."""
        self._listen(Event("note", text="checking models, data and methods"))
        self.facts = self.do(crew, [self.job("prepare")] * crew.size)[0]  # every worker makes itself ready
        self.runs = plan_runs(self.arms, self.spec.seeds, self.facts["identity"])
        if any(arm.early_stopping for arm in self.arms) and self.facts["measured_steps"] == 1:
            self._listen(Event("warning", text=_nothing_to_stop_at(self.facts)))
        described = self.described()
        compare(self.store, described)
        check_results(self.store, self.runs)
        if aside := put_aside(self.store, described):
            self._listen(Event("note", text=put_aside_in_words(described, aside)))

    def try_building(self, crew: Crew) -> None:
        """Where no run was made yet, has a trainer built, or the given checkpoints loaded; nothing is written."""
        if not any(self.store.result(key) for key in self.runs):
            self.do(crew, [self.job("build")])

    def described(self) -> dict[str, Any]:
        """What the study is, as ``study.json`` holds it."""
        return describe(self.spec, self.facts, [self._entry(arm) for arm in self.arms])

    def begun(self, *, shared: bool = False) -> AbstractContextManager[None]:
        """Holds the study's directory while a block works in it, and says there what the study is."""
        return begun(self.store, self.described(), shared=shared)

    def _entry(self, arm: ArmPlan) -> dict[str, Any]:
        """An arm as ``study.json`` holds it."""
        identity, seeds = self.facts["identity"], self.spec.seeds
        settings: list[dict[str, Any]] = []
        for setting in arm.settings:
            keys = {seed: setting_key(identity, setting, seed) for seed in seeds}
            what = {"setting": setting.label, "values": dict(setting.values), "variant": variant(setting.after)}
            cost = {"decoding": setting.decoding_cost} if setting.decoding_cost > 1 else {}
            settings.append({**what, "runs": keys, **cost})
            if trainings(setting.after) > 1:
                settings[-1]["members"] = {seed: list(member_keys(identity, setting, seed)) for seed in seeds}
        kind = {"plain": arm.plain, "early_stopping": arm.early_stopping}
        yardstick = {"yardstick": arm.yardstick} if arm.yardstick else {}
        return {"arm": arm.label, "methods": arm.written, **kind, **yardstick, "settings": settings}

    # --- 3 ---------------------------------------------------------------------------------------------------------

    def measure_initial(self, crew: Crew) -> None:
        """Measures the initial model, where that has not been done."""
        if self.store.initial_result() is None:
            self._listen(Event("note", text="measuring the initial model"))
            self.do(crew, [self.job("initial")])

    def unfinished(self) -> list[RunPlan]:
        """The runs that have something left to do, those with most of it first."""
        left = [run for run in self.runs.values() if self._left(run)]
        return sorted(left, key=self._left, reverse=True)

    def _left(self, run: RunPlan) -> int:
        """How much of a run is left: its training counts as much as a hundred variants."""
        result = self.store.result(run.key)
        if result is not None and result["status"] == "failed" and not self._retry_failed:
            return 0
        return 100 * self.to_train(run) + len(self.to_add(run))

    def _alone(self, run: RunPlan) -> bool:
        """Whether something is left of a run that needs no other run."""
        alone = {name for _, _, name in run.wanted(self.spec.keep, merges=False)}
        return self._left(run) > 0 and (self.to_train(run) or not alone.isdisjoint(self.to_add(run)))

    def any_done(self) -> bool:
        """Whether a run tells what one costs."""
        trained = [key for key, run in self.runs.items() if not run.of_initial]
        return any((self.store.result(key) or {}).get("status") == "done" for key in trained)

    def to_train(self, run: RunPlan) -> bool:
        """Whether a run is trained, or trained again since weights that are needed were not kept."""
        if run.of_initial:
            return False
        result = self.store.result(run.key)
        if result is None or result["status"] == "failed" or run.key in self._again:
            return True
        points = Points(result["points"])
        return lacks_weights(self.store, run, points, self.spec.keep) or self._lent_and_gone(run, points)

    def _lent_and_gone(self, run: RunPlan, points: Points) -> bool:
        """Whether a variant that is left to be made of another run and this one needs weights that were not kept."""
        if run.member is None:
            return False
        main = self.runs[run.member.main]
        left = self.to_add(main)
        wanted = main.wanted(self.spec.keep, merges=True)
        kinds = {of for after, of, name in wanted if name in left and run.key in main.made_of(after)}
        return lacks_kept(self.store, run.key, points, kinds)

    def to_add(self, run: RunPlan) -> list[str]:
        """The variants that a run does not have yet, without those that wait for a member that failed and say so."""
        result = self.store.result(run.key) or {"points": []}
        names = {point["name"] for point in result["points"]}
        noted = {one["name"] for one in result.get("lacking", [])}
        failed = {key for key in run.members if (self.store.result(key) or {}).get("status") == "failed"}
        return [
            name
            for after, _, name in run.wanted(self.spec.keep)
            if name not in names and not (name in noted and failed.intersection(run.made_of(after)))
        ]

    def to_do(self, run: RunPlan) -> str:
        """What is left of a run, in words."""
        result = self.store.result(run.key)
        if result is None or result["status"] == "failed":
            return self.label(run)
        if self.to_train(run):
            return f"{self.label(run)}: trained again, for weights that were not kept"
        return f"{self.label(run)}: {counted(len(self.to_add(run)), 'variant')} to add"

    def make_runs(self, crew: Crew) -> None:
        """Does every unfinished run; one that crashes its worker is recorded, and the others go on."""
        unfinished = [run for run in self.unfinished() if self._meant(run)]
        if unfinished:
            self.store.summary.unlink(missing_ok=True)  # it will not hold any more
        failed, left = failures(self.store, self.runs, unfinished), len(unfinished)
        self._listen(Event("note", text=tally(len(self.runs) - failed - left, failed, left)))
        self._do_runs(crew, [run for run in unfinished if self._alone(run)], merging=False)
        merges = [run for run in self.runs.values() if self._meant(run) and self._to_merge(run)]
        self._do_runs(crew, merges, merging=True)

    def _meant(self, run: RunPlan) -> bool:
        """Whether a run is one of those that are trained again, where it is about these."""
        return not self._again or run.key in self._again

    def _do_runs(self, crew: Crew, runs: Sequence[RunPlan], *, merging: bool) -> None:
        for run in runs:
            if not merging and (what := self.to_do(run)) != self.label(run):
                self._listen(Event("note", text=what))
            self._listen(Event("plan", run.key, self.label(run), steps=self.facts["steps"]))
        about = [{} if merging else {"again": self._trained_before(run)} for run in runs]
        jobs = [self.job("merge" if merging else "run", key=run.key, **more) for run, more in zip(runs, about)]
        for run, result in zip(runs, crew.run(jobs, self._listen)):
            if isinstance(result, Crash):
                why = record_failure(
                    self.store, run, why=result.why, keep=self.spec.keep, details=result.log, merging=merging
                )
                self._listen(Event("failed", run.key, why))

    def _to_merge(self, run: RunPlan) -> bool:
        """Whether variants of several trainings are left of a run that is done; its members have ended by now."""
        merges = {name for _, _, name in run.wanted(self.spec.keep, merges=True)}
        done = (self.store.result(run.key) or {}).get("status") == "done"
        return done and not merges.isdisjoint(self.to_add(run))

    def _trained_before(self, run: RunPlan) -> bool:
        """Whether a complete run is to be trained again."""
        return (self.store.result(run.key) or {}).get("status") == "done" and self.to_train(run)

    def label(self, run: RunPlan) -> str:
        """A run in words: its methods, their settings where these are not the default, its seed."""
        if run.of_initial:
            names = dict.fromkeys(method.name for after in run.variants for method in after)
            return f"{' and '.join(names)} of the initial model, {run.whose}"
        return f"{' + '.join(map(_in_words, run.training)) or 'plain'}, {run.whose}"

    # --- 4 ---------------------------------------------------------------------------------------------------------

    def make_tests(self, crew: Crew) -> None:
        """Measures what validation chose on test. A run whose chosen weights are gone is trained again first."""
        self._again = self._without_weights()
        if self._again:
            self.make_runs(crew)
        if lost := self._without_weights():
            raise UntaxedError(f"{self.label(self.runs[min(lost)])}: could not be trained again; try once more")
        wanted = wanted_tests(self.store)
        if count := sum(map(len, wanted.values())):
            self._listen(Event("note", text=f"measuring {counted(count, 'chosen point')} on test"))
        self.do(crew, [self.job("test", key=key, points=points) for key, points in wanted.items()])

    def _without_weights(self) -> set[str]:
        """The runs whose newly chosen points have lost their weights, as `keep` without `all` may do."""
        gone = set()
        for key, names in wanted_tests(self.store).items():
            points = Points((self.store.result(key) or {"points": []})["points"])
            chains = {name: (after, of) for after, of, name in self.runs[key].wanted(self.spec.keep)}
            for name in names:
                made_of = [(key, points.get(name))]
                if name in chains:
                    made_of = sources(self.store, self.runs[key], points, *chains[name])
                gone |= {run for run, point in made_of if not has_weights(self.store, run, point)}
        return gone

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


def _nothing_to_stop_at(facts: Mapping[str, Any]) -> str:
    if facts["given"]:
        return "early_stopping has nothing to choose from: one checkpoint is given"
    return (
        f"early_stopping has nothing to choose from: with measure.every {facts['every']} and {facts['steps']} steps"
        " only the last step is measured; lower measure.every"
    )


def _in_words(method: Method) -> str:
    defaults = {field.name: field.default for field in dataclasses.fields(method)}
    given = [f"{key}={value}" for key, value in method.settings().items() if getattr(method, key) != defaults[key]]
    return " ".join([method.name, *given])
