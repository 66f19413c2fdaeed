"""How much reward each setting of a study reaches at no more than some drift from the initial model; validation.

    python benchmarks/matched_drift.py STUDY_DIRECTORY [DRIFT …]

For every run the highest gold reward among its measured points whose forward KL is at most so many nats a token, both
sides of a reset included; mean and 95 % Student interval over seeds, and the same of the difference to plain's run of
the same seed.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from untaxed.studies.results import load_results
from untaxed.studies.store import Store

DRIFTS = (0.05, 0.1, 0.15)


def main(directory: str, *drifts: str) -> None:
    about, points = Store(Path(directory)).about(), load_results(directory)
    limits = [float(one) for one in drifts] or list(DRIFTS)
    start = points[0]["validation"]["reward"]["gold"]
    best = {
        (arm["arm"], setting["setting"]): {
            seed: [reached(points, key, limit, start) for limit in limits] for seed, key in setting["runs"].items()
        }
        for arm in about["arms"]
        for setting in arm["settings"]
        if setting["variant"] is None and not arm["early_stopping"]
    }
    plain = best[next(arm["arm"] for arm in about["arms"] if arm["plain"]), ""]
    heads = [f"at {limit:g} nats | beyond plain" for limit in limits]
    print(f"| setting | {' | '.join(heads)} |")
    print(f"|---{'|--:|--:' * len(limits)}|")
    for (arm, setting), runs in best.items():
        cells = []
        for place in range(len(limits)):
            cells.append(interval([found[place] for found in runs.values()]))
            beyond = [found[place] - plain[seed][place] for seed, found in runs.items()]
            cells.append("–" if runs is plain else interval(beyond, signed=True))
        name = f"{arm.split(' (')[0]} ({setting})" if setting else arm
        print(f"| {name} | {' | '.join(cells)} |")


def reached(points: Sequence[dict[str, Any]], key: str, limit: float, start: float) -> float:
    """A run's highest gold reward within a drift; the initial model has none."""
    own = [point["validation"] for point in points if point["run"] == key and point["variant"] is None]
    near = [one["reward"]["gold"] for one in own if one["drift"]["forward_kl"] <= limit]
    return max([start, *near])


def interval(values: Sequence[float], *, signed: bool = False) -> str:
    """Mean and 95 % Student interval."""
    mean, count = statistics.mean(values), len(values)
    half = stats.t.ppf(0.975, count - 1) * statistics.stdev(values) / count**0.5
    sign = "+" if signed else ""
    return f"{mean:{sign}.3f} ({mean - half:.3f} to {mean + half:.3f})".replace("-", "−")


if __name__ == "__main__":
    main(*sys.argv[1:])
