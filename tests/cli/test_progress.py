"""Progress: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from untaxed.cli.progress import Lines, numbers, shown
from untaxed.studies.events import Event

STORY = [
    Event("note", text="checking models, data and methods"),
    Event("warning", "k1", "grpo with beta 0"),
    Event("plan", "k1", "plain, seed 0", steps=40),
    Event("plan", "k2", "kl beta=[0.3], seed 0", steps=40),
    Event("run", "k1", "", 10, 40, seconds_left=90.0),
    Event("run", "k1", "", 20, 40, reward=0.5, tax=0.125, seconds_left=60.0),
    Event("run", "k1", "", 25, 40, reward=0.5, tax=0.125, seconds_left=45.0),
    Event("run", "k1", "averaging-0.2@last", 40, 40, reward=0.6, tax=0.2, seconds_left=0.0),
    Event("done", "k1", "", 40, 40, reward=0.6, tax=0.2),
    Event("failed", "k2", "the loss is nan at step 3", 2, 40),
]


def told(*, terminal: bool) -> str:
    file = io.StringIO()
    with shown(Console(file=file, force_terminal=terminal, width=120, highlight=False)) as listen:
        for event in STORY:
            listen(event)
    return file.getvalue()


def test_lines_tell_only_what_is_new() -> None:
    assert told(terminal=False).splitlines() == [
        "checking models, data and methods",
        "warning: grpo with beta 0",
        "plain, seed 0: step 20/40  reward 0.50  tax 0.12  1:00 left",
        "plain, seed 0: step 40/40  averaging-0.2@last  reward 0.60  tax 0.20",
        "plain, seed 0: done  reward 0.60  tax 0.20",
        "kl beta=[0.3], seed 0: FAILED: the loss is nan at step 3",
    ]


def test_bars_show_a_run_with_its_numbers_and_end_in_a_line() -> None:
    text = told(terminal=True)
    assert "\x1b[" in text
    for words in (
        "checking models",
        "warning: grpo with beta 0",
        "plain, seed 0",
        "all runs",
        "done  reward 0.60",
        "kl beta=[0.3], seed 0: FAILED",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("seconds", "clock"), [(59.6, "1:00 left"), (61.0, "1:01 left"), (3725.0, "1:02:05 left"), (None, "")]
)
def test_time_left(seconds: float | None, clock: str) -> None:
    assert numbers(Event("run", "k", step=1, steps=2, seconds_left=seconds)) == clock


def test_a_text_that_looks_like_markup_is_shown_as_it_is() -> None:
    file = io.StringIO()
    Lines(Console(file=file, width=200))(Event("note", text="[bold]not markup[/bold]"))
    assert file.getvalue() == "[bold]not markup[/bold]\n"
