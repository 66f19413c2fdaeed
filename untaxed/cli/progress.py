"""Showing a study's progress: bars on a terminal, plain lines elsewhere. Both go to standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from ..studies.events import Event, Listener


@contextlib.contextmanager
def shown(console: Console | None = None) -> Iterator[Listener]:
    """Lends a listener that shows what it is told."""
    console = console or Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield Lines(console)
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}", markup=False),
        console=console,
        transient=True,
    ) as progress:
        yield Bars(progress)


def numbers(event: Event) -> str:
    """An event's numbers in words: ``reward 0.62  tax 0.08  1:20 left``."""
    parts = [
        event.text,
        f"reward {event.reward:.2f}" if event.reward is not None else "",
        f"tax {event.tax:.2f}" if event.tax is not None else "",
        f"{_clock(event.seconds_left)} left" if event.seconds_left and event.step < event.steps else "",
    ]
    return "  ".join(filter(None, parts))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Bars:
    """One bar a run while it goes on, a line when it is done, and a bar of all runs below."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._labels: dict[str, str] = {}
        self._bars: dict[str, TaskID] = {}
        self._ended: set[str] = set()  # runs: one whose variants need other runs ends a second time
        self._all: TaskID | None = None

    def __call__(self, event: Event) -> None:
        if event.kind in ("note", "warning"):
            self._print(aside(event))
        elif event.kind == "plan":
            self._plan(event)
        elif event.kind == "run":
            self._move(event)
        elif event.kind == "tested":
            self._take_off(event)
        else:
            self._end(event)

    def _plan(self, event: Event) -> None:
        self._labels[event.key] = event.text
        if self._all is None:
            self._all = self._progress.add_task("all runs", total=0, numbers="")
        self._progress.update(self._all, total=len(self._labels))

    def _move(self, event: Event) -> None:
        if event.key not in self._bars:
            label = self._labels.get(event.key, event.key)
            self._bars[event.key] = self._progress.add_task(label, total=event.steps, numbers="")
        self._progress.update(self._bars[event.key], completed=event.step, numbers=numbers(event))

    def _end(self, event: Event) -> None:
        self._print(ending(self._labels.get(event.key, event.key), event))
        self._take_off(event)
        if self._all is not None:
            self._ended.add(event.key)
            self._progress.update(self._all, completed=len(self._ended))

    def _take_off(self, event: Event) -> None:
        if event.key in self._bars:
            self._progress.remove_task(self._bars.pop(event.key))

    def _print(self, text: str) -> None:
        self._progress.console.print(Text(text))


class Lines:
    """A line whenever a run was measured, begins another part or ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._labels: dict[str, str] = {}
        self._last: dict[str, tuple[object, ...]] = {}

    def __call__(self, event: Event) -> None:
        label = self._labels.get(event.key, event.key)
        if event.kind == "plan":
            self._labels[event.key] = event.text
        elif event.kind in ("note", "warning"):
            self._print(aside(event))
        elif event.kind == "run":
            news = (event.text, event.reward, event.tax)
            if news != self._last.get(event.key, ("", None, None)):
                self._print(f"{label}: step {event.step}/{event.steps}  {numbers(event)}")
            self._last[event.key] = news
        elif event.kind != "tested":
            self._print(ending(label, event))

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


def aside(event: Event) -> str:
    """The line of a note or a warning."""
    return f"warning: {event.text}" if event.kind == "warning" else event.text


def ending(label: str, event: Event) -> str:
    """The line with which a run ends."""
    return f"{label}: FAILED: {event.text}" if event.kind == "failed" else f"{label}: done  {numbers(event)}"
