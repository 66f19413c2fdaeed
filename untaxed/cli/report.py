"""``untaxed report``: what a study found, as a table, JSON, Markdown or a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .outcome import one_line_errors, print_json


@one_line_errors
def command(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Directories of studies.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the page here; of one study.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; a list where several are given.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
) -> None:
    """Show the summary of finished studies, or of what an unfinished one has so far.

    Example: untaxed report untaxed-demo --markdown
    """
    from rich.console import Console

    from .. import reporting
    from ..errors import SpecError
    from ..studies.summary import summary_of

    if as_json and markdown:
        raise SpecError("--json and --markdown exclude each other")
    if html is not None and len(directories) > 1:
        raise SpecError(f"--html is the page of one study; {len(directories)} directories are given")
    summaries = [summary_of(directory) for directory in directories]
    if html is not None:
        typer.echo(f"report: {reporting.write_html(directories[0], html, summaries[0])}", err=True)
    if as_json:
        print_json(summaries[0] if len(summaries) == 1 else summaries)
    elif markdown:
        typer.echo("\n".join(reporting.markdown(summary) for summary in summaries))
    elif html is None:
        for summary in summaries:
            reporting.terminal(summary, Console())
