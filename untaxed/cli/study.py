"""``untaxed study``: a spec becomes a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .outcome import FAILED, one_line_errors

Workers = Annotated[
    int | None, typer.Option(min=0, help="Processes; 0: this one. Default: as many as suit machine and model.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]


@one_line_errors
def command(
    spec: Annotated[Path, typer.Argument(help="The study, a YAML file.")],
    out: Annotated[Path, typer.Option(help="The study's directory; an interrupted study there is gone on with.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, as in algorithm.max_steps=20.")
    ] = None,
    workers: Workers = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print runs, minutes and disk; start nothing.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try runs that failed again.")] = False,
    as_json: Json = False,
) -> None:
    """Align a model once per method and seed, measure, and report the reward-tax frontier.

    Interrupt it, kill it, start it again: only what is missing is done. Arms and seeds may be added to the spec.

    Example: untaxed study my-study.yaml --out my-study --set seeds=[0,1,2]
    """
    from ..studies import load_spec

    loaded = load_spec(spec, set_ or [])
    if plan:
        from .plan import show_plan

        show_plan(loaded, out, workers, as_json=as_json)
        return
    from .finish import run_and_report

    if run_and_report(loaded, out, workers, retry_failed=retry_failed, as_json=as_json).failed:
        raise typer.Exit(FAILED)
