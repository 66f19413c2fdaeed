"""``untaxed measure``: what alignment cost, on models that anybody trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .outcome import one_line_errors, print_json


@one_line_errors
def command(
    initial: Annotated[str, typer.Option(help="The model that alignment started from; pocket: the embedded one.")],
    suite: Annotated[str, typer.Option(help="What is measured, a YAML file; pocket: the embedded world's.")],
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL...", help="Models after alignment: folders or hub ids; --plan needs none."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A directory for numbers, scores and the page; else only the cache is used.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the suite.")
    ] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Say what would be done and the least tax that it finds; measure nothing."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_card: Annotated[bool, typer.Option("--card", help="Print a Hugging Face model card; of one model.")] = False,
) -> None:
    """Measure models against the one before alignment: reward won, abilities lost, drift, each with its interval.

    What was measured once is not measured again, whatever the folder of a model is called.

    Example: untaxed measure aligned-100 aligned-200 --initial start --suite suite.yaml --out measured
    """
    from rich.console import Console

    from .. import comparison
    from ..errors import SpecError
    from ..reporting import measured, measured_card, measured_csv, measured_page, measured_plan

    given = models or []
    if as_json + as_markdown + as_csv + as_card > 1:
        raise SpecError("--json, --markdown, --csv and --card exclude each other")
    if plan and as_markdown + as_csv + as_card:
        raise SpecError("--plan prints a table, or JSON with --json")
    if as_card and len(given) > 1:
        raise SpecError(f"--card is the card of one model; {len(given)} are given")
    loaded = comparison.load_suite(suite, set_ or [])
    if plan:
        planned = comparison.plan(given, initial, loaded, out)
        print_json(planned) if as_json else measured_plan.terminal(planned, Console())
        return
    found = comparison.measure(given, initial, loaded, out, say=lambda text: typer.echo(text, err=True))
    if as_json:
        print_json(found.summary)
    elif as_markdown:
        typer.echo(measured.markdown(found.summary), nl=False)
    elif as_csv:
        typer.echo(measured_csv.as_csv(found.summary), nl=False)
    elif as_card:
        typer.echo(measured_card.card(found.summary), nl=False)
    else:
        measured.terminal(found.summary, Console())
    if found.directory is not None:
        typer.echo(f"report: {measured_page.write(found.directory, found.summary)}", err=True)
