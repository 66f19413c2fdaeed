import re

import pytest

from untaxed.measuring import answers

NUMBER = re.compile(r"-?\$?(?:\d[\d,]*)?\.?\d+")


@pytest.mark.parametrize(
    ("text", "pattern", "take", "expected"),
    [
        (" 4 eggs ", None, "last", "4 eggs"),
        ("2 + 2 = 4. So 4 eggs.", NUMBER, "last", "4"),
        ("3 and 4", NUMBER, "first", "3"),
        ("She makes $1,250.50.", NUMBER, "last", "$1,250.50"),
        ("work\n#### 1,234", re.compile(r"####\s*(.+)"), "last", "1,234"),
        ("A or (B)", re.compile(r"\((\w)\)|([A-D])"), "last", "B"),
        ("none", NUMBER, "last", ""),
    ],
)
def test_the_answer_is_taken_out_of_the_text(text, pattern, take, expected):
    assert answers.extracted(text, pattern, take) == expected


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        ("18", "18", 1),
        ("$18.00", "18", 1),
        ("1,250", "1250.0", 1),
        ("-3", "3", 0),
        (".5", "0.5", 1),
        ("18", "19", 0),
        ("", "0", 0),
        ("none", "none", 0),
    ],
)
def test_numbers_are_numbers_however_written(answer, right, expected):
    assert answers.number(answer, [right]) == expected


def test_match_is_letter_by_letter():
    assert answers.match(" yes", ["no", "yes"]) == 1
    assert answers.match("Yes", ["yes"]) == 0


@pytest.mark.parametrize(
    ("answer", "right", "em", "f1"),
    [
        ("The Denver Broncos!", "denver broncos", 1, 1),
        ("Denver", "Denver Broncos", 0, 2 / 3),  # precision 1, recall 1/2
        ("in the year 2015, February", "February 2015", 0, 2 * (2 / 4) * 1 / (2 / 4 + 1)),
        ("", "x", 0, 0),
        ("red red", "red", 0, 2 / 3),  # a word counts as often as it stands there
    ],
)
def test_squads_scores(answer, right, em, f1):
    assert answers.exact(answer, ["zzz", right]) == em
    assert answers.f1(answer, ["zzz", right]) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "right", "em", "f1"),
    [
        ("3", "3.0", 1, 1),
        ("3 yards", "3", 0, 2 / 3),
        ("4 yards", "3 yards", 0, 0),  # the number does not agree
        ("The Bears", "bears", 1, 1),
        ("1,000", "1000", 1, 1),
        ("58.4%", "58.4", 1, 1),
        ("first-half", "first half", 1, 1),
        ("half", "3", 0, 0),
        ("", "3", 0, 0),
    ],
)
def test_drops_scores(answer, right, em, f1):
    assert answers.drop_exact(answer, [right]) == em
    assert answers.drop_f1(answer, [right]) == pytest.approx(f1)
