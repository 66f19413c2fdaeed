"""``untaxed pocket``: the embedded worlds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .outcome import one_line_errors

app = typer.Typer(help="The embedded worlds: a tiny language and its models.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """The embedded worlds: a tiny language and its models."""


@app.command("build")
@one_line_errors
def build(
    out: Annotated[Path | None, typer.Option(help="Where the models go; default: into the package.")] = None,
) -> None:
    """Make the embedded worlds' models again from their seed; takes some minutes.

    Example: untaxed pocket build --out pocket-again
    """
    from .. import pocket

    typer.echo(pocket.build(out, progress=lambda line: typer.echo(line, err=True)))
