"""The big table as Markdown: every arm of a finished study by what it costs at plain's reward, with time and memory.

    python benchmarks/big_table.py benchmarks/results/pocket_all_dpo [--short 12]

Arms that come to 0.95 of plain's gain on validation stand first, by their tax there on test; then those that come to
0.8, to 0.5, and the others. `--short` prints the first so many rows, plain, kl and early stopping always among them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHARES = ("q0.95", "q0.8", "q0.5")
ALWAYS = ("plain", "early_stopping", "kl")
HEAD = ("arm", "tax at 0.95", "report tax", "at 0.8", "at 0.5", "beyond early stopping", "area", "seconds", "MB")


def number(value: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """Mean and interval; a dash where there is none."""
    if value is None or value["mean"] is None:
        return "–"
    text = f"{value['mean']:{'+' if signed else ''}.3f}"
    if value["low"] is not None:
        text += f" ({value['low']:.3f} to {value['high']:.3f})"
    return text.replace("-", "−")


def order(entry: Mapping[str, Any]) -> tuple[float, ...]:
    """First where an arm gets to, then its tax there."""
    for rank, share in enumerate(SHARES):
        found = entry["tax"][share]
        if found is not None and found["mean"] is not None:
            return rank, found["mean"]
    return len(SHARES), 0.0


def row(entry: Mapping[str, Any]) -> str:
    tax, name = entry["tax"], entry["arm"] + (" (reference)" if entry.get("yardstick") else "")
    cells = [
        name.replace("_", r"\_").replace("|", r"\|"),
        number(tax["q0.95"]),
        number(entry["report_tax"]["q0.95"]),
        number(tax["q0.8"]),
        number(tax["q0.5"]),
        number(entry["beyond_early_stopping"], signed=True),
        number(entry["area"]),
        f"{entry['seconds']['mean']:.0f}" if entry["seconds"]["mean"] is not None else "–",
        f"{entry['peak_bytes'] / 1e6:.0f}" if entry["peak_bytes"] else "–",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--short", type=int)
    options = parser.parse_args()
    entries = sorted(json.loads((options.directory / "summary.json").read_text())["arms"], key=order)
    if options.short is not None:
        kept = [entry["arm"] for entry in entries[: options.short]]
        entries = [entry for entry in entries if entry["arm"] in kept or entry["arm"] in ALWAYS]
    print(f"| {' | '.join(HEAD)} |\n|---|{'--:|' * (len(HEAD) - 1)}")
    print("\n".join(map(row, entries)))


if __name__ == "__main__":
    main()
