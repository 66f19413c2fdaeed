"""What a study measured, for comparing two of them to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from untaxed.studies import load_results
from untaxed.studies.store import read_scores


def values(directory: Path) -> dict[str, Any]:
    """Everything that was measured in a study, and by no clock."""
    points = [{k: v for k, v in point.items() if k != "weights"} for point in load_results(directory)]
    scores = {
        f"{path.parent.name}/{key}": value.tolist()
        for path in sorted(directory.rglob("scores.npz"))
        for key, value in read_scores(path).items()
    }
    return {"points": points, "scores": scores}
