"""How a command ends: one line for what went wrong, and the exit code."""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import typer

from ..errors import INTERRUPTED, UntaxedError, UsageError

P = ParamSpec("P")
T = TypeVar("T")
FAILED, WRONG = 1, 2


def one_line_errors(command: Callable[P, T]) -> Callable[P, T]:
    """Ends a command with one line and the exit code where it raises an error of ours, or is interrupted.

    With ``UNTAXED_DEBUG=1`` the error goes through with its traceback.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended from outside: as careful as Ctrl-C
        starting = signal.getsignal(signal.SIGINT)
        if starting not in (signal.SIG_IGN, signal.SIG_DFL):  # from here on there may be work to put down in order
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return command(*args, **kwargs)
        except UntaxedError as error:
            if os.environ.get("UNTAXED_DEBUG") == "1":
                raise
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(WRONG if isinstance(error, UsageError) else FAILED) from None
        except KeyboardInterrupt:
            typer.echo(INTERRUPTED, err=True)
            raise typer.Exit(130) from None
        finally:
            signal.signal(signal.SIGTERM, before)
            signal.signal(signal.SIGINT, starting)

    return wrapped


def print_json(value: Any) -> None:
    """Prints plain values as JSON on standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1))
