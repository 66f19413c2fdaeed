"""How much reward and tax each setting of a study has at its last step, beside plain at the same reward; validation.

    python benchmarks/last_step.py STUDY_DIRECTORY

For halving: many settings on few seeds, looked at on validation alone. A row is a setting's mean over its seeds.
Plain's tax at that reward is read off the line between its own steps' means, initial among them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from untaxed.studies.results import load_results
from untaxed.studies.store import Store

Pair = tuple[float, float]  # gold reward, tax


def main(directory: str) -> None:
    about = Store(Path(directory)).about()
    points = load_results(directory)
    initial = points[0]["validation"]
    chance = {measure["name"]: measure["chance"] for measure in about["measures"]}
    curves = {
        (arm["arm"], setting["setting"], arm["plain"]): curve(points, setting["runs"].values(), about, initial, chance)
        for arm in about["arms"]
        for setting in arm["settings"]
        if setting["variant"] is None and not arm["arm"].startswith("early_stopping")
    }
    start = initial["reward"]["gold"]
    plain = [(start, 0.0), *next(found for (_, _, is_plain), found in curves.items() if is_plain).values()]
    most = max(gold for gold, _ in plain) - start
    print("| setting | gold | share of plain's gain | tax | plain's tax at that gold | less by |")
    print("|---|--:|--:|--:|--:|--:|")
    for (arm, setting, _), found in curves.items():
        gold, tax = found[max(found)]
        beside = float(np.interp(gold, *zip(*sorted(plain))))
        label = f"{arm.split(' (')[0]} ({fixed(arm)}{setting})" if "|" in arm else arm
        cells = [f"{gold:.3f}", f"{(gold - start) / most:.2f}", f"{tax:.3f}", f"{beside:.3f}", f"{beside - tax:+.3f}"]
        print(f"| {label} | {' | '.join(cells).replace('-', '−')} |")


def fixed(arm: str) -> str:
    """The settings in an arm's label that are not swept."""
    inside = arm.partition(" (")[2].rstrip(")").split(", ")
    kept = [one for one in inside if one and "|" not in one]
    return "".join(f"{one}, " for one in kept)


def curve(
    points: list[dict[str, Any]],
    keys: Iterable[str],
    about: Mapping[str, Any],
    initial: Any,
    chance: Mapping[str, float],
) -> dict[int, Pair]:
    """Mean gold reward and tax of some runs at each step."""
    own, found = set(keys), dict[int, list[Pair]]()
    for point in points:
        if point["run"] in own and point["variant"] is None and point["phase"] != "before":
            reading = point["validation"]
            lost = [
                1 - (reading["abilities"][name] - chance[name]) / (initial["abilities"][name] - chance[name])
                for name in about["select"]
            ]
            found.setdefault(point["step"], []).append((reading["reward"]["gold"], sum(lost) / len(lost)))
    return {step: tuple(np.mean(pairs, axis=0).tolist()) for step, pairs in sorted(found.items())}


if __name__ == "__main__":
    main(*sys.argv[1:])
