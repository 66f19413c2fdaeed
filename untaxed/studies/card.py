"""The model card of a variant that a study chose: how it was made, and what it measured on test beside initial."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..measuring.statistics import draws, item_weights
from ..merging import model_card, plain
from .bench import Bench
from .points import Point, Points
from .store import Store, read_scores

GROUPS = ("reward", "abilities", "drift")
WIDTH = 1.96  # standard deviations of a 95 % interval


def write_card(bench: Bench, store: Store, points: Points, point: Point, parents: Mapping[str, str]) -> None:
    """Writes README.md beside the weights of a tested variant.

    Args:
        points: Of its run, with the test scores.
        point: The variant's.
        parents: The checkpoints it was made of, and what each is.
    """
    assert point["variant"] is not None
    found = point.get("found")
    recipe = {"made": point["variant"], **({"found": found} if found else {})}
    given = {plain_name(bench): "initial: the model that alignment started from", **parents}
    name = f"{bench.spec.name}, {point['name']}"
    how = "Made after alignment from a run's checkpoint and the initial model, without further training."
    text = model_card(name, how, recipe, given, tax=_table(bench, store, points, point))
    directory = Path(point["weights"])
    (directory / "README.md").write_text(text, encoding="utf-8")


def plain_name(bench: Bench) -> str:
    """The initial model as the spec names it."""
    return str(bench.spec.models.initial)


def _table(bench: Bench, store: Store, points: Points, point: Point) -> str:
    start = read_scores(store.initial / "scores.npz")
    rows = ["| measure | initial | this model | difference | items |", "|---|--:|--:|--:|--:|"]
    for measure in sorted(bench.facts()["measures"], key=lambda one: GROUPS.index(one["group"])):
        key = f"test/{measure['group']}.{measure['name']}"
        before, now = start.get(f"initial/{key}"), points.scores.get(f"{point['name']}/{key}")
        if before is None or now is None or len(before) != len(now):
            continue
        rows.append(_row(f"{measure['name']} ({measure['unit']})", measure["statistic"], key, before, now))
    return (
        "On the study's test items; 95 % intervals over items, of this one model. Intervals over seeds, and the tax at "
        "matched reward, stand in the study's report.\n\n" + "\n".join(rows)
    )


def _row(name: str, statistic: str, key: str, before: NDArray[Any], now: NDArray[Any]) -> str:
    drawn = draws(statistic, [before, now], item_weights(key, len(before)))
    change = drawn[:, 1] - drawn[:, 0]
    half = WIDTH * float(np.std(change[1:]))
    numbers = (float(drawn[0, 0]), float(drawn[0, 1]), float(change[0]))
    interval = f"{numbers[2]:+.3f} ({numbers[2] - half:+.3f} to {numbers[2] + half:+.3f})"
    return f"| {plain(name)} | {numbers[0]:.3f} | {numbers[1]:.3f} | {interval} | {len(before)} |"
