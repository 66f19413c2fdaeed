"""``untaxed merge``: models become one, as a recipe says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .outcome import interrupt_says, one_line_errors, print_json

if TYPE_CHECKING:
    from ..merging import Plan

GIGA = 10**9


@one_line_errors
def command(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.yaml", help="A merge recipe; mergekit's are read as they are.")
    ],
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help="The directory to appear.")] = None,
    plan_only: Annotated[bool, typer.Option("--plan", help="Say what would be done; touch nothing.")] = False,
    workers: Annotated[int | None, typer.Option(help="Threads; the processors, at most 8, where not given.")] = None,
    shard_size: Annotated[float, typer.Option(metavar="GB", help="Most gigabytes of tensors a file.")] = 5.0,
    allow_nonfinite: Annotated[bool, typer.Option("--allow-nonfinite", help="Merge NaN and infinity, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Merge models block by block: a few blocks of memory a thread, whatever their size.

    Example: untaxed merge recipe.yaml merged --plan
    """
    from ..errors import SpecError

    if out is None and not plan_only:
        raise SpecError("say where the merged model goes: untaxed merge RECIPE.yaml OUT (or --plan)")
    if not 1 <= shard_size * GIGA < math.inf:
        raise SpecError(f"--shard-size must be above 0, at least one byte and finite, got {shard_size:g}")
    with interrupt_says("interrupted: nothing was written; start again"):
        from .. import merging

        plan = merging.make_plan(recipe, workers=workers, allow_nonfinite=allow_nonfinite)
    numbers = _numbers(plan)
    if plan_only:
        if as_json:
            print_json(numbers)
        else:
            _print_plan(plan)
        return
    assert out is not None
    for note in plan.notes:
        typer.echo(f"note: {note}", err=True)
    with interrupt_says(f"interrupted: nothing was kept, {out} is as it was; start again"):
        _run(plan, out, int(shard_size * GIGA))
    if as_json:
        print_json({**numbers, "out": str(out)})
    else:
        typer.echo(f"merged: {out} ({len(plan.kinds)} tensors, {_size(plan.write_bytes)})")


def _run(plan: Plan, out: Path, shard_bytes: int) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    from .. import merging

    console = Console(stderr=True)
    if not console.is_terminal:
        merging.run(plan, out, shard_bytes=shard_bytes)
        return
    with Progress("merging", BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=sum(kind.nbytes for kind in plan.kinds.values()))
        merging.run(plan, out, shard_bytes=shard_bytes, progress=lambda nbytes: bar.advance(task, nbytes))


def _numbers(plan: Plan) -> dict[str, Any]:
    least, most = plan.read_bytes
    return {
        "method": plan.recipe.merge_method,
        "parents": list(plan.parents),
        "tensors": len(plan.kinds),
        "read_bytes": {"least": least, "most": most},
        "write_bytes": plan.write_bytes,
        "peak_bytes": plan.peak_bytes,
        "workers": plan.workers,
        "notes": plan.notes,
        "blocks": [{"where": where, "how": how, "tensors": count} for where, how, count in plan.blocks()],
    }


def _print_plan(plan: Plan) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    least, most = plan.read_bytes
    read = _size(least) if least == most else f"{_size(least)} to {_size(most)}"
    typer.echo(f"merge     {plan.recipe.merge_method} of {', '.join(plan.parents)}")
    typer.echo(f"writes    {_size(plan.write_bytes)}, {len(plan.kinds)} tensors")
    typer.echo(f"reads     {read}")
    typer.echo(f"memory    at most {plan.peak_bytes / 2**20:.0f} MiB beside the interpreter's, {plan.workers} threads")
    for note in plan.notes:
        typer.echo(f"note      {note}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("where", "tensors", "what"):
        table.add_column(heading, overflow="fold")
    for where, how, count in plan.blocks():
        table.add_row(*map(Text, (where, str(count), how)))  # a name may have brackets, which are markup in a str
    Console().print(table)


def _size(nbytes: int) -> str:
    return f"{nbytes / GIGA:.2f} GB" if nbytes >= GIGA else f"{nbytes / 10**6:.1f} MB"
