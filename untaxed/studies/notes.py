"""Python warnings of ours inside a study: notes to whoever listens, not lines in a worker's log."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from .events import Event, Listener

PACKAGE = Path(__file__).parents[1]


@contextmanager
def heard(say: Callable[[str], object]) -> Iterator[None]:
    """Hands every `UserWarning` of `untaxed` that comes up within the block to `say`; others go where they went."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module=r"untaxed\.")
        show: Any = warnings.showwarning

        def hear(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, UserWarning) and Path(filename).is_relative_to(PACKAGE):
                say(" ".join(str(message).split()))
            else:
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = hear
        yield


def each_warning_once(listen: Listener) -> Listener:
    """A listener that passes on a warning only when no run has said the same before."""
    said: set[str] = set()

    def listening(event: Event) -> None:
        if event.kind == "warning" and event.text in said:
            return
        if event.kind == "warning":
            said.add(event.text)
        listen(event)

    return listening
