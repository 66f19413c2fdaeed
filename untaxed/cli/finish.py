"""What `study` and `demo` share: run, print the table, write the page."""

from __future__ import annotations

from pathlib import Path

import typer

from ..studies import Study, StudySpec
from .outcome import print_json
from .progress import shown


def run_and_report(
    spec: StudySpec, out: Path, workers: int | None, *, retry_failed: bool = False, as_json: bool = False
) -> Study:
    """Runs a study with its progress shown, prints its summary and writes its report."""
    from rich.console import Console

    from .. import reporting
    from ..studies import run_study
    from ..studies.endings import whose

    with shown() as listen:
        study = run_study(spec, out, workers, listen, retry_failed=retry_failed)
    page = reporting.write_html(study.directory)
    if as_json:
        print_json(study.summary())
    else:
        reporting.terminal(study.summary(), Console())
    for run in study.failed:
        typer.echo(f"failed: run {run['run']}, {whose(run)}: {run['why']}", err=True)
    if not all(run["lacking"] for run in study.failed):
        typer.echo("try them again with --retry-failed", err=True)
    typer.echo(f"report: {page}", err=True)
    return study
