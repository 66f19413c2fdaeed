"""What is made of a run's kept checkpoints: variants, tests of what was chosen; and what stays of its weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ..checkpoints import save_model
from ..errors import StoreError
from ..measuring import measure
from ..measuring.suite import SPLITS, Split
from ..method import Method
from .arms import Chain, RunPlan, variant, variant_name
from .bench import Bench
from .events import Event, Listener
from .points import Point, Points
from .progress import Reporter
from .store import WRITING, Store, locked, remove, write_json


def measure_point(bench: Bench, points: Points, point: Point, model: Any, splits: Iterable[Split]) -> None:
    """Measures a model and puts the numbers to its point."""
    subject = bench.subject(model)
    points.put(point, {split: measure(subject, split) for split in splits})


def make_variants(bench: Bench, store: Store, run: RunPlan, points: Points, reporter: Reporter) -> None:
    """Makes and measures the variants that the arms want and that are not among the points yet."""
    for after, of, source in wanted_variants(bench, run, points):
        name = variant_name(after, of)
        if name in points.names():
            continue
        reporter.stage(name)
        nothing = {"weights": None, "validation": None, "test": None}
        point = {**points.get(source), "name": name, "variant": variant(after, of), **nothing}
        if alike := _alike(bench, run, points, name, "validation"):
            points.put_alike(point, alike, "validation")
        else:
            model = _variant_model(bench, store, run, points.get(source), after)
            measure_point(bench, points, point, model, SPLITS[:1])
        points.save_progress(store.run(run.key))


def wanted_variants(bench: Bench, run: RunPlan, points: Points) -> list[tuple[Chain, str, str]]:
    """(methods, kind of kept checkpoint, that checkpoint's point) of every variant that the arms want of a run."""
    return [(after, of, points.kept(of)) for after in run.variants for of in bench.spec.keep if of != "all"]


def _alike(bench: Bench, run: RunPlan, points: Points, name: str, split: Split) -> str | None:
    """A variant that is the same model, measured already: where the best checkpoint is the last, two kinds name it."""
    made_of = {variant_name(after, of): (after, source) for after, of, source in wanted_variants(bench, run, points)}
    if name not in made_of:
        return None
    same = [other for other in made_of if made_of[other] == made_of[name] and other in points.names()]
    return next((other for other in same if points.get(other)[split] is not None), None)


@torch.no_grad()
def _variant_model(bench: Bench, store: Store, run: RunPlan, source: Point, after: tuple[Method, ...]) -> Any:
    model = _load(bench, store, run, source)
    initial = dict(bench.initial.model.named_parameters())
    weights: dict[str, torch.Tensor] = dict(model.named_parameters())
    for method in after:
        weights = method.after(initial, weights)
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
    return model


def _load(bench: Bench, store: Store, run: RunPlan, point: Point) -> Any:
    path = store.run(run.key) / str(point["weights"])  # a given checkpoint's path is absolute and wins
    if point["weights"] is None or not path.is_dir():
        raise StoreError(
            f"run {run.key}: the weights of {point['name']} are gone; remove {store.run(run.key)} to train it again,"
            " and add `all` to `keep` where arms are to be added later"
        )
    return bench.load(path)


def measure_test(bench: Bench, store: Store, run: RunPlan, names: Iterable[str], listen: Listener) -> None:
    """Measures chosen points of a complete run on test; chosen variants keep their weights from here on."""
    directory = store.run(run.key)
    with locked(directory / ".lock", what=f"run {run.key}"):
        result, points = store.result(run.key), Points.load(directory)
        assert result is not None
        chains = {variant_name(after, of): (after, source) for after, of, source in wanted_variants(bench, run, points)}
        for name in names:
            point = points.get(name)
            if point["test"] is not None:
                continue
            listen(Event("run", run.key, f"testing {name}", bench.steps, bench.steps))
            if name in chains:
                after, source = chains[name]
                model = _variant_model(bench, store, run, points.get(source), after)
                point = point | {"weights": f"weights/{name}"}
                with WRITING:
                    save_model(model, bench.tokenizer, directory / point["weights"])
            else:
                model = _load(bench, store, run, point)
            if alike := _alike(bench, run, points, name, "test"):
                points.put_alike(point, alike, "test")
            else:
                measure_point(bench, points, point, model, ["test"])
        points.save(directory, {key: value for key, value in result.items() if key not in ("points", "notes")})
        listen(Event("tested", run.key))


def prune(store: Store, key: str, *, kinds: Iterable[str], chosen: Iterable[str]) -> None:
    """Removes the weights of a complete run that are neither of a kept kind nor chosen; its result says so first."""
    result = store.result(key)
    if result is None or result["status"] == "failed":
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
