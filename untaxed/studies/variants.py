"""What is made of a run's kept checkpoints: variants, tests of what was chosen; and what stays of its weights."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..checkpoints import save_model
from ..errors import RunFailed, StoreError
from ..measuring import measure
from ..measuring.suite import SPLITS, Split
from ..sites import Weights
from .arms import INITIAL, Chain, RunPlan, variant, writes_weights
from .bench import Bench
from .card import write_card
from .endings import Lacking, has_weights, lack, one_line
from .events import Event, Listener
from .making import Source, make
from .of_initial import measure_of_initial
from .points import Point, Points
from .progress import Reporter
from .store import WRITING, Store, disk_full, locked, remove, write_atomic, write_json

AGAIN = "--retry-failed trains it again"


def measure_point(bench: Bench, points: Points, point: Point, model: Any, splits: Iterable[Split]) -> None:
    """Measures a model and puts the numbers to its point."""
    subject = bench.subject(model)
    points.put(point, {split: measure(subject, split) for split in splits})


def make_variants(
    bench: Bench,
    store: Store,
    run: RunPlan,
    points: Points,
    reporter: Reporter,
    keep: Callable[[], None],
    *,
    merges: bool = False,
) -> list[Lacking]:
    """Makes and measures the variants that the arms want and that are not among the points yet.

    Args:
        keep: Called after each one, to write it down.
        merges: Whether it is those that are made of several trainings, or those of this one alone.
    Returns:
        Those that could not be measured: the others are none the worse for them.
    Raises:
        StoreError: The disk is full, or the weights are gone.
    """
    lacking = []
    for after, of, name in run.wanted(bench.spec.keep, merges=merges):
        if name in points.names():
            continue
        reporter.stage(name)
        try:
            _make_variant(bench, store, run, points, reporter, after, of, name)
        except Exception as error:
            if isinstance(error, StoreError) or disk_full(error):
                raise
            write_atomic(store.run(run.key) / "error.txt", traceback.format_exc().encode())
            lacking.append(lack(after, of, one_line(error)))
        else:
            keep()
    return lacking


def _make_variant(
    bench: Bench, store: Store, run: RunPlan, points: Points, reporter: Reporter, after: Chain, of: str, name: str
) -> None:
    if run.of_initial:
        measure_of_initial(bench, store, run, points, after, SPLITS[:1], partial(reporter.stage, of=name))
        return
    source = points.get(points.kept(of))
    nothing = {"weights": None, "validation": None, "test": None}
    point = {**source, "name": name, "variant": variant(after, of), **nothing}
    if alike := _alike(bench, store, run, points, name, "validation"):
        points.put_alike(point | _found(points.get(alike).get("found")), alike, "validation")
    else:
        made_of = sources(store, run, points, after, of)
        model, found = _variant_model(bench, store, run, made_of, after, partial(reporter.stage, of=name))
        measure_point(bench, points, point | _found(found), model, SPLITS[:1])


def _found(found: Any) -> dict[str, Any]:
    """What a point says of what its methods searched or learned; nothing where none did."""
    return {"found": found} if found else {}


def _alike(bench: Bench, store: Store, run: RunPlan, points: Points, name: str, split: Split) -> str | None:
    """A variant that is the same model, measured already: where the best checkpoint is the last, two kinds name it."""
    wanted = {other: (after, of) for after, of, other in run.wanted(bench.spec.keep)}
    if name not in wanted:
        return None
    measured = [other for other in wanted if other in points.names() and points.get(other)[split] is not None]
    kin = [other for other in measured if wanted[other][0] == wanted[name][0]]
    made_of = {other: sources(store, run, points, *wanted[other]) for other in (name, *kin)} if kin else {}
    return next((other for other in kin if made_of[other] == made_of[name]), None)


def sources(store: Store, run: RunPlan, points: Points, after: Chain, of: str) -> list[Source]:
    """The kept checkpoints that a variant is made of: its run's, then those of its members; none of the initial model.

    Raises:
        RunFailed: A member has no checkpoints.
    """
    if run.of_initial:
        return []
    found = [(run.key, points.get(points.kept(of)))]
    for number, key in enumerate(run.made_of(after)[1:], start=1):
        result = store.result(key)
        if result is None or result["status"] == "failed":
            raise RunFailed(f"member {number}, run {key}, {'failed' if result else 'is not done'}; {AGAIN}")
        theirs = Points(result["points"])
        found.append((key, theirs.get(theirs.kept(of))))
    return found


def _variant_model(
    bench: Bench,
    store: Store,
    run: RunPlan,
    made_of: Sequence[Source],
    after: Chain,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[Any, list[Any]]:
    """The model of a variant, and what its methods found on the way."""
    (key, point), others = made_of[0], made_of[1:]
    model = _load(bench, store, key, point)

    def members(place: int) -> list[Weights]:
        """What stands before a merge in the arm is done to each member."""
        theirs = [_variant_model(bench, store, replace(run, key=one[0]), [one], after[:place])[0] for one in others]
        return [dict(model.named_parameters()) for model in theirs]

    found = make(bench, store, run, made_of, after, model, members, tell)
    return (model if writes_weights(after) else after[-1].decoded(bench.initial.model, model)), found


def _load(bench: Bench, store: Store, key: str, point: Point) -> Any:
    if not has_weights(store, key, point):
        raise StoreError(
            f"run {key}: the weights of {point['name']} are gone; remove {store.run(key)} to train it again"
        )
    return bench.load(store.run(key) / point["weights"])  # a given checkpoint's path is absolute and wins


def measure_test(bench: Bench, store: Store, run: RunPlan, names: Iterable[str], listen: Listener) -> None:
    """Measures chosen points of a complete run on test; chosen variants that have weights keep them from here on."""
    directory = store.run(run.key)
    with locked(directory / ".lock", what=f"run {run.key}"):
        result, points = store.result(run.key), Points.load(directory)
        assert result is not None
        wanted = {name: (after, of) for after, of, name in run.wanted(bench.spec.keep)}
        for name in names:
            point = points.get(name)
            if point["test"] is not None:
                continue
            _tell_test(listen, bench, run, f"testing {name}")
            if run.of_initial:
                tell = partial(_tell_test, listen, bench, run)
                measure_of_initial(bench, store, run, points, wanted[name][0], ["test"], tell)
                continue
            saved = name in wanted and writes_weights(wanted[name][0])
            if name in wanted:
                made_of = sources(store, run, points, *wanted[name])
                model, _ = _variant_model(bench, store, run, made_of, wanted[name][0])
            else:
                model = _load(bench, store, run.key, point)
            if saved:
                point = point | {"weights": f"weights/{name}"}
                with WRITING:
                    save_model(model, bench.tokenizer, directory / point["weights"])
            if alike := _alike(bench, store, run, points, name, "test"):
                points.put_alike(point, alike, "test")
            else:
                measure_point(bench, points, point, model, ["test"])
            if saved:
                _write_card(bench, store, run, points, points.get(name), *wanted[name])
        points.save(directory, {key: value for key, value in result.items() if key not in ("points", "notes")})
        listen(Event("tested", run.key))


def _tell_test(listen: Listener, bench: Bench, run: RunPlan, text: str) -> None:
    listen(Event("run", run.key, text, bench.steps, bench.steps))


def _write_card(bench: Bench, store: Store, run: RunPlan, points: Points, point: Point, after: Chain, of: str) -> None:
    made_of = {f"run {key}, {source['name']}": "aligned" for key, source in sources(store, run, points, after, of)}
    with WRITING:
        write_card(bench, store, points, {**point, "weights": store.run(run.key) / point["weights"]}, made_of)


def prune(store: Store, key: str, *, kinds: Iterable[str], chosen: Iterable[str]) -> None:
    """Removes the weights of a complete run that are neither of a kept kind nor chosen; its result says so first."""
    result = store.result(key)
    if result is None or result["status"] == "failed" or result.get("of") == INITIAL:
        return
    points = Points(result["points"])
    stay = {*chosen, *(points.kept(kind) for kind in kinds)}
    gone = [p for p in points.points if str(p["weights"]).startswith("weights/") and p["name"] not in stay]
    if gone:
        kept = [{**point, "weights": None} if point in gone else point for point in points.points]
        write_json(store.run(key) / "result.json", {**result, "points": kept})
    named = {point["weights"] for point in points.points if point not in gone}
    for path in (store.run(key) / "weights").glob("*"):  # also what a kill left between writing and removing
        if f"weights/{path.name}" not in named:
            remove(path)
