"""What is kept of one ability at equal reward, over all models of a kept study, whatever their method and setting.

    python benchmarks/ability_by_reward.py benchmarks/results/pocket_all_safety_dpo lookalike

Validation items. First every checkpoint and average of every run by its gold reward; best-of-n and mixed logits, which
are no models, are left out. Then what the checkpoints of a method keep beyond plain's of the same seed at the same
reward, on a line through plain's checkpoints, initial the first: means over five seeds with 95 % intervals.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from untaxed.measuring.statistics import student

EDGES = (0.0, 0.6, 0.7, 0.8, 0.85, 0.88, 1.0)
GIVEN = {"distill", "kl_loss", "ogpsa", "nspo"}  # questions of the select abilities, of another split
HEAD = ("gold reward", "models", "least", "5 %", "median", "95 %", "most", "plain's checkpoints", "given questions")
Line = Sequence[tuple[float, float]]


class Model(NamedTuple):
    methods: str
    seed: int
    checkpoint: bool
    gold: float
    kept: float


def models(directory: Path, ability: str) -> Iterator[Model]:
    """Every model of the study; `methods` are those in training, with the settings that the study varies."""
    runs = [json.loads(path.read_text()) for path in sorted(directory.glob("runs/*/result.json"))]
    seen: dict[tuple[str, str], set[str]] = defaultdict(set)
    for one in itertools.chain.from_iterable(run["methods"] for run in runs):
        for key, value in one.items():
            seen[one["method"], key].add(str(value))
    for run in runs:
        label = " + ".join(
            " ".join([one["method"], *(f"{key}={one[key]}" for key in one if len(seen[one["method"], key]) > 1)])
            for one in run["methods"]
        )
        for point in run["points"]:
            if point["validation"] and not re.match("best_of_n|logit_mixing", point["name"]):
                found = point["validation"]
                checkpoint = bool(re.fullmatch(r"step-\d+(-before)?", point["name"]))
                yield Model(label, run["seed"], checkpoint, found["reward"]["gold"], found["abilities"][ability])


def by_reward(found: Sequence[Model]) -> None:
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for low, high in itertools.pairwise(EDGES):
        within = [one for one in found if low <= one.gold < high]
        kept = sorted(one.kept for one in within)
        if not kept:
            continue
        plain = [one.kept for one in within if not one.methods and one.checkpoint]
        given = [one.kept for one in within if one.methods.split(" ")[0] in GIVEN]
        numbers = [kept[0], kept[len(kept) // 20], statistics.median(kept), kept[-1 - len(kept) // 20], kept[-1]]
        cells = [f"{low} to {high}", str(len(kept)), *(f"{number:.2f}" for number in numbers)]
        cells += [f"{statistics.median(one):.2f} of {len(one)}" if one else "–" for one in (plain, given)]
        print(f"| {' | '.join(cells)} |")


def beside_plain(found: Sequence[Model], initial: tuple[float, float]) -> None:
    plain: dict[int, list[tuple[float, float]]] = defaultdict(lambda: [initial])
    for one in found:
        if not one.methods and one.checkpoint:
            plain[one.seed].append((one.gold, one.kept))
    beyond: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in found:
        expected = at(sorted(plain[one.seed]), one.gold)
        if one.methods and one.checkpoint and expected is not None:
            beyond[one.methods][one.seed].append(one.kept - expected)
    rows = []
    for methods, seeds in beyond.items():
        if len(seeds) >= 5:
            rows.append((student(np.array([[statistics.mean(values) for values in seeds.values()]])), methods))
    print("| beyond plain's line, mean over seeds | method |\n|---|---|")
    for interval, methods in sorted(rows, key=lambda row: -row[0].mean):
        print(f"| {signed(interval.mean)} ({signed(interval.low)} to {signed(interval.high)}) | {methods} |")


def signed(number: float) -> str:
    return f"{round(number, 3) + 0.0:+.3f}".replace("-", "−")


def at(line: Line, gold: float) -> float | None:
    """A line through points, sorted by reward, at a reward; None beyond its ends."""
    for (low, left), (high, right) in itertools.pairwise(line):
        if low <= gold <= high:
            return left if low == high else left + (right - left) * (gold - low) / (high - low)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("ability")
    given = parser.parse_args()
    found = list(models(given.directory, given.ability))
    first = json.loads((given.directory / "initial/result.json").read_text())
    by_reward(found)
    print()
    beside_plain(found, initial_of(first, given.ability))


def initial_of(result: Mapping[str, Any], ability: str) -> tuple[float, float]:
    point = result["points"][0]["validation"]
    return point["reward"]["gold"], point["abilities"][ability]


if __name__ == "__main__":
    main()
