"""How a command ends: one line for what went wrong, and the exit code."""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import typer

from ..errors import INTERRUPTED, UntaxedError, UsageError

P = ParamSpec("P")
T = TypeVar("T")
FAILED, WRONG = 1, 2
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # ended from outside, or by a closed terminal: as by Ctrl-C
LEFT: dict[int, tuple[Any, ...]] = {  # who ignores these means it: a shell's background job, nohup
    signal.SIGINT: (signal.SIG_IGN, signal.SIG_DFL),
    signal.SIGHUP: (signal.SIG_IGN,),
}


def one_line_errors(command: Callable[P, T]) -> Callable[P, T]:
    """Ends a command with one line and the exit code where it raises an error of ours, or is interrupted.

    With ``UNTAXED_DEBUG=1`` the error goes through with its traceback. What an interrupt carries is said instead of
    the usual line: a command raises it anew where that line is not true.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        before = {number: signal.getsignal(number) for number in ENDING}
        for number, handler in before.items():
            if handler not in LEFT.get(number, ()):  # from here on there may be work to put down in order
                signal.signal(number, signal.default_int_handler)
        try:
            return command(*args, **kwargs)
        except UntaxedError as error:
            if os.environ.get("UNTAXED_DEBUG") == "1":
                raise
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(WRONG if isinstance(error, UsageError) else FAILED) from None
        except KeyboardInterrupt as interrupt:
            typer.echo(str(interrupt) or INTERRUPTED, err=True)
            raise typer.Exit(130) from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    return wrapped


@contextmanager
def interrupt_says(line: str) -> Iterator[None]:
    """Lets an interrupt within carry what is true of it there."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(line) from None


def print_json(value: Any) -> None:
    """Prints plain values as JSON on standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1))
