"""What results must be beyond their shape: of this run, each point once, nothing missing, and scores that agree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from .store import Store, made_again, read_scores

Scores = Mapping[str, NDArray[np.float64]]


def check_results(store: Store, keys: Iterable[str]) -> None:
    """Checks what a study has of the initial model and of runs, before more is built on it.

    Raises:
        StoreError: A file is damaged; it names the file, what is wrong, and the way out.
    """
    initial = store.initial_result()
    if initial is None or not store.study.exists():
        return
    measures = store.about()["measures"]
    check_points(store.initial, initial["points"], measures, store.initial)
    for key in keys:
        if (result := store.result(key)) is not None:
            check_points(store.run(key), result["points"], measures, store.initial)


def check_points(
    directory: Path, points: Sequence[Mapping[str, Any]], measures: Sequence[Mapping[str, Any]], initial: Path
) -> None:
    """Checks the points of one ``result.json`` against what the study measures, and their scores.

    Args:
        directory: Where the result lies.
        points: Its points.
        measures: As ``study.json`` lists them.
        initial: Where the initial model's scores lie: every model is measured on the same items.
    """
    result, path = directory / "result.json", directory / "scores.npz"
    start = scores_of(initial / "scores.npz")
    for point, split, measure in _measured(points, measures):
        key = f"{measure['group']}.{measure['name']}"
        if measure["name"] not in point[split][measure["group"]]:
            raise StoreError(f"{result}: {point['name']} has no {key} on {split}; {made_again(result)}")
        if point[split][measure["group"]][measure["name"]] is None and key in point.get("why", {}):
            continue  # undefined, and the point says so
        name, scores = f"{point['name']}/{split}/{key}", scores_of(path)
        if name not in scores:
            raise StoreError(f"{path}: holds no {name}; {made_again(path)}")
        if not np.isfinite(scores[name]).all():
            raise StoreError(f"{path}: {name} has a value that is no number; {made_again(path)}")
        expected = start.get(f"initial/{split}/{key}")
        if expected is not None and expected.shape != scores[name].shape:
            shapes = f"{scores[name].shape}, the initial model's are {expected.shape}"
            raise StoreError(f"{path}: {name} is of shape {shapes}; {made_again(path)}")


def _measured(
    points: Sequence[Mapping[str, Any]], measures: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], str, Mapping[str, Any]]]:
    for point in points:
        for split in ("validation", "test"):
            if point[split] is not None:
                yield from ((point, split, measure) for measure in measures)


def scores_of(path: Path) -> Scores:
    """The scores of a run, read again when the file has changed."""
    return _scores(path, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=512)
def _scores(path: Path, _: int) -> Scores:
    return read_scores(path)
