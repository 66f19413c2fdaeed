"""What is kept of one ability at equal reward, over every model of a kept study, whatever its method and setting.

    python benchmarks/ability_by_reward.py benchmarks/results/pocket_all_safety_dpo lookalike

Validation items; all checkpoints and averages of all runs, of settings that were not chosen, too. The ability is as it
was measured, not over initial's. Best-of-n, which trains nothing, is left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

EDGES = (0.6, 0.7, 0.8, 0.85, 0.88, 1.0)
GIVEN = {"distill", "kl_loss", "replay", "ogpsa", "nspo"}  # prompts, texts or rows of what is to stay
HEAD = ("gold reward", "models", "median", "5 % to 95 %", "most", "median of plain", "of methods given prompts")


def models(directory: Path, ability: str) -> Iterator[tuple[float, float, set[str]]]:
    """Gold reward, the ability, and the methods in training, of every model."""
    for path in sorted(directory.glob("runs/*/result.json")):
        run = json.loads(path.read_text())
        for point in run["points"]:
            if point["validation"] and "best_of_n" not in point["name"]:
                found = point["validation"]
                yield found["reward"]["gold"], found["abilities"][ability], {one["method"] for one in run["methods"]}


def middle(values: list[float]) -> str:
    return f"{statistics.median(values):.2f}" if values else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("ability")
    given = parser.parse_args()
    found = list(models(given.directory, given.ability))
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for low, high in itertools.pairwise(EDGES):
        within = [(kept, methods) for gold, kept, methods in found if low <= gold < high]
        kept = sorted(value for value, _ in within)
        if not kept:
            continue
        cells = [
            f"{low} to {high}",
            str(len(kept)),
            middle(kept),
            f"{kept[len(kept) // 20]:.2f} to {kept[-1 - len(kept) // 20]:.2f}",
            f"{kept[-1]:.2f}",
            middle([value for value, methods in within if not methods]),
            middle([value for value, methods in within if methods & GIVEN]),
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
