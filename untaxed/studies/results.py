"""Reading what a study left on disk: points as dicts, and the arms as the frontier takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import frontier
from ..errors import StoreError
from .sound import check_results, scores_of
from .store import Store

OF = {"last": "last step", "best_proxy": "best proxy reward", "initial": "initial model"}


def load_results(directory: str | Path) -> list[dict[str, Any]]:
    """Reads every measured point of a study: one dict a point, the initial model's first.

    A point is as ``result.json`` holds it, with the keys ``run``, ``seed`` and ``methods`` added. Failed runs have no
    points, and those of members beside their arm's run are no points of an arm; `runs` tells of both.

    Args:
        directory: A study's directory, finished or not.
    Raises:
        StoreError: It holds no study.
    """
    store = opened(directory)
    found = []
    if (initial := store.initial_result()) is not None:
        found += [{"run": None, "seed": None, "methods": [], **point} for point in initial["points"]]
    own = set(_own_keys(store.about()))
    for result in (run for run in runs(store.directory) if run["key"] in own):
        about = {"run": result["key"], "seed": result["seed"], "methods": result["methods"]}
        found += [{**about, **point} for point in result["points"]]
    return found


def runs(directory: str | Path) -> list[dict[str, Any]]:
    """The results of a study's runs that ended, failed ones and members among them, without arms that left the spec."""
    store = opened(directory)
    results = (store.result(key) for key in sorted(planned_keys(store.about())))
    return [result for result in results if result is not None]


def planned_keys(about: Mapping[str, Any]) -> list[str]:
    """The keys of all runs that the arms of ``study.json`` ask for, once each; members after the others."""
    members = (key for setting in _settings(about) for keys in setting.get("members", {}).values() for key in keys)
    return list(dict.fromkeys([*_own_keys(about), *members]))


def _own_keys(about: Mapping[str, Any]) -> list[str]:
    """The keys of the runs whose points are points of an arm."""
    return list(dict.fromkeys(key for setting in _settings(about) for key in setting["runs"].values()))


def _settings(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [setting for arm in about["arms"] for setting in arm["settings"]]


def opened(directory: str | Path) -> Store:
    """The store of a study that exists."""
    store = Store(Path(directory))
    if not store.study.is_file():
        raise StoreError(f"{directory}: holds no study (study.json is missing)")
    return store


class Results:
    """A study's results as the frontier takes them.

    Attributes:
        about: What ``study.json`` says.
        planned: The keys of all runs that it asks for.
        arms: With one setting for each choice of swept values at each step, or as each variant.
        facts: What all arms share.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.about: dict[str, Any] = store.about()
        self.planned = planned_keys(self.about)
        self._runs = {key: result for key in self.planned if (result := store.result(key))}
        self._places: dict[tuple[str, str], list[tuple[str, str]]] = {}
        self.arms = [self._arm(arm) for arm in self.about["arms"]]
        if (initial := store.initial_result()) is None:
            raise StoreError(f"{store.directory}: nothing has been measured yet; start the study again")
        check_results(store, self.planned)
        self.facts = frontier.Facts(
            measures=self.about["measures"],
            select=self.about["select"],
            report=self.about["report"],
            initial=_point(initial["points"][0], 0, store.initial / "scores.npz"),
            seeds=self.about["spec"]["seeds"],
        )

    @property
    def complete(self) -> list[dict[str, Any]]:
        """The runs that ended, failed ones among them."""
        return list(self._runs.values())

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The runs that failed, with their reason."""
        return [result for result in self._runs.values() if result["status"] == "failed"]

    @property
    def lacking(self) -> list[dict[str, Any]]:
        """The runs of which a variant that is asked for could not be measured: ``{"run", "seed", "lacking": […]}``."""
        found = []
        for key, asked in self._variants().items():
            lacking = [one for one in self._runs[key].get("lacking", []) if _without_of(one["variant"]) in asked]
            if lacking:
                found.append({"run": key, "seed": self._runs[key]["seed"], "member": None, "lacking": lacking})
        return found

    @property
    def unmeasured(self) -> list[str]:
        """The runs that have no point of a variant that is asked for."""
        variants = self._variants()
        made = {key: [_without_of(point["variant"]) for point in self.points(key)] for key in variants}
        return [key for key, asked in variants.items() if any(one not in made[key] for one in asked)]

    def _variants(self) -> dict[str, list[dict[str, Any]]]:
        """The variants that the arms ask for, by run, of the runs that are done."""
        asked: dict[str, list[dict[str, Any]]] = {}
        for setting in _settings(self.about):
            for key in setting["runs"].values() if setting["variant"] is not None else ():
                if self._runs.get(key, {}).get("status") == "done":
                    asked.setdefault(key, []).append(setting["variant"])
        return asked

    def places(self, arm: str, setting: str) -> list[tuple[str, str]]:
        """(run, point) of every seed of a setting."""
        return self._places[arm, setting]

    def point(self, key: str, name: str) -> dict[str, Any]:
        """One point as its run's result holds it."""
        return next(point for point in self._runs[key]["points"] if point["name"] == name)

    def points(self, key: str) -> list[dict[str, Any]]:
        """All points of a run; none where it failed or is not done."""
        return list(self._runs[key]["points"]) if key in self._runs else []

    def _arm(self, arm: Mapping[str, Any]) -> frontier.Arm:
        own = [] if arm["early_stopping"] else arm["settings"]  # plain's points stand for it, not a second time
        trained = [self._trained(keys) for keys in _runs_of(own)]
        done = [run for runs in trained for run in runs]
        peaks = [run["peak_bytes"] for run in done if run["peak_bytes"] is not None]
        seconds = [[run["train_seconds"] for run in runs] for runs in trained if runs]
        return frontier.Arm(
            name=arm["arm"],
            methods=arm["methods"],
            settings=[found for setting in own for found in self._settings(arm["arm"], setting)],
            plain=arm["plain"],
            early_stopping=arm["early_stopping"],
            seconds=[sum(each) for each in seconds if None not in each],
            members=max(map(len, _runs_of(own)), default=1),
            peak_bytes=max(peaks, default=None),
            yardstick=arm.get("yardstick", ""),
        )

    def _trained(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        """The results of a run and its members; none unless all of them are done."""
        found = [self._runs[key] for key in keys if self._runs.get(key, {}).get("status") == "done"]
        return found if len(found) == len(keys) else []

    def _settings(self, arm: str, setting: Mapping[str, Any]) -> Iterator[frontier.Setting]:
        """One setting of the frontier for every point name that the setting's runs have."""
        found: dict[str, dict[int, tuple[str, dict[str, Any]]]] = {}
        for seed, key in setting["runs"].items():
            for point in self.points(key):
                if _without_of(point["variant"]) == setting["variant"]:
                    found.setdefault(point["name"], {})[int(seed)] = (key, point)
        for points in found.values():
            first = next(iter(points.values()))[1]
            label = ", ".join(filter(None, [setting["setting"], _moment(first)]))
            self._places[arm, label] = [(key, point["name"]) for key, point in points.values()]
            yield frontier.Setting(
                label,
                {**setting["values"], **_where(first)},
                {
                    seed: _point(point, seed, self._store.run(key) / "scores.npz")
                    for seed, (key, point) in points.items()
                },
                decoding=setting.get("decoding", 1),
            )


def _point(point: Mapping[str, Any], seed: int, scores: Path) -> frontier.Point:
    def read(split: str, key: str) -> NDArray[np.float64]:
        return scores_of(scores)[f"{point['name']}/{split}/{key}"]

    return frontier.Point(
        seed=seed,
        name=point["name"],
        step=point["step"],
        variant=point["variant"],
        phase=point["phase"],
        values={"validation": point["validation"], "test": point["test"]},
        scores=read,
        found=point.get("found", ()),
        why=point.get("why", {}),
    )


def _runs_of(settings: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The keys of every run of an arm, each with as many members as any setting needs."""
    found: dict[str, list[str]] = {}
    for setting in settings:
        for seed, key in setting["runs"].items():
            found[key] = max(found.get(key, []), setting.get("members", {}).get(seed, []), key=len)
    return [[key, *members] for key, members in found.items()]


def _without_of(variant: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if variant is None else {key: value for key, value in variant.items() if key != "of"}


def _moment(point: Mapping[str, Any]) -> str:
    """Where in its run a setting's points lie, in words; the best checkpoint's step differs from seed to seed."""
    if point["variant"] is not None:
        return f"of the {OF[point['variant']['of']]}"
    phase = {"before": " before the reset", "after": " after the reset", None: ""}[point["phase"]]
    return f"step {point['step']}{phase}"


def _where(point: Mapping[str, Any]) -> dict[str, Any]:
    return {"step": point["step"]} if point["variant"] is None else {"of": point["variant"]["of"]}
