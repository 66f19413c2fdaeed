"""``untaxed align``: one run of a study, in this process; also under ``accelerate launch``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .outcome import FAILED, one_line_errors


@one_line_errors
def command(
    spec: Annotated[Path, typer.Argument(help="The study, a YAML file.")],
    run: Annotated[str, typer.Option(metavar="KEY", help="The run's key or its beginning, as --plan prints it.")],
    out: Annotated[Path, typer.Option(help="The study's directory.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, as in algorithm.max_steps=20.")
    ] = None,
) -> None:
    """Do one run of a study; `untaxed study` later takes it as done.

    Example: untaxed align my-study.yaml --run 3f2a --out my-study
    """
    from ..studies import load_spec
    from ..studies.endings import lacking_in_words
    from ..studies.study import align
    from .progress import shown

    with shown() as listen:
        result = align(load_spec(spec, set_ or []), run, out, listen)
    if result["status"] == "failed":
        typer.echo(f"failed: {result['why']}", err=True)
        raise typer.Exit(FAILED)
    if result.get("lacking"):
        typer.echo(f"failed: {lacking_in_words(result['lacking'])}", err=True)
        raise typer.Exit(FAILED)
    if result["status"] == "done":
        typer.echo(out / "runs" / result["key"] / "result.json")
