"""``untaxed study --plan``: runs, minutes and disk before anything starts."""

from __future__ import annotations

from pathlib import Path

import typer

from ..studies import StudySpec
from .outcome import print_json
from .progress import shown


def show_plan(spec: StudySpec, out: Path, workers: int | None, *, as_json: bool) -> None:
    """Checks everything, tries out a few steps where nothing is known yet, and prints what would be done."""
    from ..studies.detectable import in_words
    from ..studies.estimate import tally
    from ..studies.events import counted
    from ..studies.study import planned

    with shown() as listen:
        labels, estimate = planned(spec, out, workers, listen)
    if as_json:
        print_json({**estimate.json(), "unfinished": labels})
        return
    minutes = "not known" if estimate.seconds is None else f"about {estimate.seconds / 60:.1f}"
    left = estimate.runs - estimate.done - estimate.failed
    typer.echo(f"study     {tally(estimate.done, estimate.failed, left)}")
    if left:
        typer.echo(f"each      {counted(estimate.steps, 'step')}, up to {counted(estimate.points, 'model')} measured")
        if estimate.searched:
            typer.echo(f"search    up to {estimate.searched} measurements more, to find what methods look for")
    typer.echo(f"minutes   {minutes} ({estimate.basis})")
    least, most = _size(estimate.kept_bytes), _size(estimate.disk_bytes)
    stay = "all of it stays" if least == most else f"{least} to {most} stay, depending on what is chosen"
    typer.echo(f"disk      {most} of weights at most; {stay}")
    for first, line in zip(["found     ", *[" " * 10] * len(estimate.detectable) * 2], in_words(estimate.detectable)):
        typer.echo(first + line)
    for label in labels:
        typer.echo(f"  to do   {label}")


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
