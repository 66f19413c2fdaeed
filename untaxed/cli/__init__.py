"""The command line: one short file a command, each parses, calls and prints.

Exit codes: 0 done, 1 the work failed, 2 the call or a file given is wrong, 130 interrupted.
"""

from __future__ import annotations

import typer

from . import align, demo, doctor, measure, merge, methods, pocket, report, study

app = typer.Typer(
    name="untaxed",
    help="Align language models without the alignment tax: remedies, measurement and the reward-tax frontier.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.command)
app.command("study")(study.command)
app.command("align")(align.command)
app.command("measure")(measure.command)
app.command("merge")(merge.command)
app.command("report")(report.command)
app.command("methods")(methods.command)
app.command("doctor")(doctor.command)
app.add_typer(pocket.app, name="pocket")
