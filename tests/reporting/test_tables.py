"""Numbers for readers, the table of arms, and how terminal and Markdown draw it."""

import copy
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from untaxed.reporting import markdown, terminal
from untaxed.reporting.drops import drops, drops_title, p_in_words
from untaxed.reporting.numbers import Notes, plain_number
from untaxed.reporting.tables import abilities_table, arms_table

MARKS = "¹²³⁴⁵⁶⁷⁸⁹"


def interval(mean, low=None, high=None, n=5, why=None):
    return {"mean": mean, "low": low, "high": high, "n": n, "why": why}


def printed(summary, width):
    out = io.StringIO()
    terminal(summary, Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(0.1234, "0.123"), (-0.5, "−0.500"), (-0.0, "0.000"), (-0.0001, "−0.00010")],
        *[(12.34, "12.3"), (12345.6, "12346"), (None, "–")],
    ],
)
def test_numbers_are_rounded_by_size(value, text):
    assert plain_number(value) == text


@given(st.floats(-1e6, 1e6))
def test_a_rounded_number_never_shows_a_negative_zero_or_a_hyphen(value):
    text = plain_number(value)
    assert "-" not in text
    assert text.strip("−0.") or not text.startswith("−")


def test_cells_round_a_number_and_its_interval_alike():
    cell = Notes().cell(interval(9.5, 8.1, 10.9))
    assert (cell.mean, cell.span, cell.note) == ("9.5", "8.1 to 10.9", None)
    assert Notes().cell(interval(0.25, 0.1, 0.4), signed=True).mean == "+0.250"
    assert Notes().cell(interval(-0.25, -0.4, 0.1), signed=True).mean == "−0.250"


def test_reasons_are_numbered_once_in_order():
    notes = Notes()
    numbers = [notes.cell(interval(None, why=why)).note for why in ("never got there", "no run", "never got there")]
    assert numbers == [1, 2, 1]
    assert notes.reasons == ["never got there", "no run"]


def test_fewer_seeds_are_noted_and_what_the_caveats_say_is_not():
    notes = Notes(seeds=5, silent=("items only, 2 seeds",))
    assert notes.cell(interval(0.1, 0.0, 0.2, n=5)).note is None
    assert notes.cell(interval(0.1, 0.0, 0.2, n=2, why="items only, 2 seeds")).note is None
    assert notes.cell(interval(0.1, 0.0, 0.2, n=4)).note == 1
    assert notes.reasons == ["from 4 of 5 seeds"]


def test_every_number_of_an_arm_stands_in_its_row(summary):
    table = arms_table(summary)
    rows = {entry["arm"]: dict(zip((column.title for column in table.columns), cells)) for entry, cells in table.rows}
    averaging = next(entry for entry in summary["arms"] if entry["arm"] == "averaging")
    assert rows["averaging"]["tax at 0.95"].mean == plain_number(averaging["tax"]["q0.95"]["mean"], 3)
    assert rows["averaging"]["beyond early stopping"].mean.startswith("+")
    assert table.notes[rows["plain"]["area"].note - 1] == "see early_stopping"


def test_columns_that_a_study_does_not_measure_are_not_shown(summary):
    for entry in summary["arms"]:
        del entry["reward"]["gold"], entry["drift"]["forward_kl"]
    assert not {"gold reward", "drift, KL"} & {column.title for column in arms_table(summary).columns}


def test_abilities_come_as_select_report_left_out(summary):
    table = abilities_table(summary)
    assert [table.groups[name] for name in table.names] == ["select"] * 4 + ["report"] * 2 + ["left out"]
    kept = dict(zip(table.names, table.rows[0][1]))
    assert 0 < kept["reading"].share < 1
    assert kept["riddles"].share is None


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_terminal_keeps_to_its_width(summary, width):
    text = printed(summary, width)
    assert max(map(len, text.splitlines())) <= width
    assert "averaging beats early stopping" in " ".join(text.split())
    assert "tax at 0.95" in text


def test_terminal_says_which_columns_it_left_out(summary):
    assert "In a wider window" in printed(summary, 80)
    assert "seconds a" in printed(summary, 80)
    assert "In a wider window" not in printed(summary, 250)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_notes_of_the_columns_that_fit_are_numbered_without_gaps(summary, width):
    lines = printed(summary, width).splitlines()
    listed = "".join(line[0] for line in lines if line and line[0] in MARKS)
    used = {mark for line in lines for mark in MARKS if f"–{mark}" in line}
    assert listed
    assert listed == MARKS[: len(listed)]
    assert used <= set(listed)


def test_an_unfinished_study_says_so_above_its_verdict(summary):
    assert "Unfinished" not in printed(summary, 80) + markdown(summary)
    summary["unfinished"] = "3 of 7 runs are complete"
    for text in (printed(summary, 80), markdown(summary)):
        first, second = [line for line in text.splitlines() if line][:2]
        assert first == "Unfinished: 3 of 7 runs are complete."
        assert "averaging beats early stopping" in second


def test_terminal_shows_names_as_they_are(summary):
    summary["arms"][2]["arm"] = "[red]kl[/red]"
    assert "[red]kl[/red]" in printed(summary, 200)


def test_markdown_is_a_table_with_the_verdict_above(summary):
    text = markdown(summary)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert text.startswith("**averaging beats early stopping")
    assert len({row.count("|") - row.count("\\|") for row in rows}) == 1
    assert len(rows) == 2 + len(summary["arms"])
    assert "Left out: riddles" in text


def test_markdown_escapes_what_others_wrote(summary):
    hostile = copy.deepcopy(summary)
    hostile["arms"][2]["arm"] = "a|b\n# <img src=x> [link](http://x) `code`"
    text = markdown(hostile)
    assert "<img" not in text
    assert "<script" not in text
    assert "a\\|b # &lt;img src=x&gt; \\[link\\](http://x) \\`code\\`" in text


def test_drops_that_are_real_are_named_with_loss_interval_and_corrected_p(summary):
    told = dict(drops(summary))
    plain = next(entry for entry in summary["arms"] if entry["arm"] == "plain")
    for name, ability in plain["abilities"].items():
        assert (f"{name} fell by" in told["plain"]) == (ability["real"] == "drop")
    reading = plain["abilities"]["reading"]
    assert f"reading fell by {plain_number(reading['loss']['mean'], 3)} (" in told["plain"]
    assert p_in_words(reading["p_adjusted"]) in told["plain"]
    assert told["plain"].endswith("of 6")  # riddles is left out
    assert plain["abilities"]["riddles"]["p_adjusted"] is None


def test_what_rose_is_told_the_right_way_round(summary):
    for entry in summary["arms"]:
        for ability in entry["abilities"].values():
            ability["real"] = None if ability["real"] is None else "unclear"
    facts = summary["arms"][0]["abilities"]["facts"]
    facts |= {"real": "gain", "p_adjusted": 0.0123, "loss": interval(-0.2, -0.3, -0.1)}
    assert drops(summary)[0] == ("plain", "facts rose by 0.200 (0.100 to 0.300, p 0.012); 1 of 6")
    assert drops(summary, short=True)[0] == ("plain", "facts +0.200; 1 of 6")
    assert drops(summary)[1][1] == drops(summary, short=True)[1][1] == "none of 6"


def test_drops_stand_in_terminal_and_markdown_and_say_when_they_are_of_items_only(summary):
    title = "Abilities that really fell or rose (Benjamini-Hochberg at 0.05 over each arm's abilities)"
    wide, narrow = (" ".join(printed(summary, width).split()) for width in (250, 80))
    assert title in wide
    assert f"plain: {dict(drops(summary, short=True))['plain']}" in wide
    assert title not in narrow
    assert "which abilities really fell." in narrow
    assert title in markdown(summary)
    assert f"- plain: {dict(drops(summary))['plain'].replace('_', chr(92) + '_')}".replace("<", "&lt;") in markdown(
        summary
    )
    summary["arms"][0]["abilities"]["facts"]["loss"]["why"] = "items only, 1 seed"
    assert drops_title(summary).endswith("abilities; over test items only)")


def test_summaries_from_before_drops_were_tested_are_shown_without_them(summary):
    for entry in summary["arms"]:
        for ability in entry["abilities"].values():
            del ability["p"], ability["p_adjusted"], ability["real"]
    assert drops(summary) == []
    assert "really fell" not in printed(summary, 100) + markdown(summary)
    assert {kept.finding + kept.p for _, row in abilities_table(summary).rows for kept in row} == {""}


@pytest.mark.parametrize(
    ("p", "text"), [(0.0, "p < 0.001"), (0.00099, "p < 0.001"), (0.0123, "p 0.012"), (1.0, "p 1.000")]
)
def test_small_p_values_are_not_rounded_to_nothing(p, text):
    assert p_in_words(p) == text
