"""``untaxed demo``: the embedded world's study, end to end, nothing downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .outcome import FAILED, one_line_errors
from .study import Json, Workers


def demo_spec(seeds: int) -> dict[str, Any]:
    """The demo's study: what plain dpo costs, and what five remedies that cost little win back."""
    reset = {"elastic_reset": {"decay": 0.95, "reset_every": 40}}
    return {
        "name": "untaxed demo",
        "models": {"initial": "pocket"},
        "algorithm": {"name": "dpo"},
        "methods": [
            "plain",
            "early_stopping",
            {"kl": {"beta": {"sweep": [1.0, 2.0]}}},
            {"averaging": {"initial_share": {"sweep": [0.1, 0.2, 0.3, 0.4, 0.6]}}},
            reset,
            [reset, {"averaging": {"initial_share": {"sweep": [0.1, 0.2, 0.3]}}}],
        ],
        "keep": ["last", "all"],  # variants of the last checkpoint alone: half the measuring
        "seeds": list(range(seeds)),
    }


@one_line_errors
def command(
    out: Annotated[Path, typer.Option(help="Where the study goes; an interrupted demo there is gone on with.")] = Path(
        "untaxed-demo"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Trainings an arm; from 3 on intervals cover the seeds too.")] = 2,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Show the alignment tax of a tiny model, and what six arms pay: minutes on a laptop, nothing downloaded.

    Example: untaxed demo --seeds 3
    """
    from ..studies.spec import parse_spec
    from .finish import run_and_report

    if run_and_report(parse_spec(demo_spec(seeds)), out, workers, as_json=as_json).failed:
        raise typer.Exit(FAILED)
