"""Rules: each kept and broken by a text, and the share of them as a reward."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from untaxed.errors import SpecError
from untaxed.measuring.rules import Rule, Rules
from untaxed.validation import validated


class Holder(BaseModel):
    rules: list[Rule]


@pytest.mark.parametrize(
    ("rule", "kept", "broken"),
    [
        ({"regex": r"\d+ apples"}, ["I ate 3 apples.", "12 apples"], ["three apples", ""]),
        ({"regex": r"(?i)^yes"}, ["YES, it is"], ["Oh yes"]),
        ({"json": True}, ['{"a": [1, null]}', " 3\n", '"x"'], ["{a: 1}", "", '{"a": NaN}', "1 and more", "[" * 9999]),
        ({"max_words": 3}, ["", "one two  three\n"], ["one two three four"]),
        ({"min_words": 2}, ["one two"], ["one", "", "  \n "]),
        ({"contains": ["tea", "Cake"]}, ["TEA and cake"], ["tea", ""]),
        ({"excludes": ["sorry", "as an AI"]}, ["Here it is", ""], ["Sorry!", "Well, as an ai I"]),
    ],
)  # fmt: skip
def test_every_rule_is_kept_and_broken(rule: dict, kept: list[str], broken: list[str]) -> None:
    made = Rules([Rule.model_validate(rule)])
    assert made([""] * len(kept), kept) == [1.0] * len(kept)
    assert made([""] * len(broken), broken) == [0.0] * len(broken)


def test_the_share_is_weighted() -> None:
    rules = Rules([Rule(max_words=2, weight=3), Rule(regex="x"), Rule(min_words=1)])
    assert rules(["p"] * 3, ["a b", "x y z", ""], extra=1) == [4 / 5, 2 / 5, 3 / 5]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"regex": "("}, r"rules.0.regex: '\(' is no regular expression: missing \)"),
        ({}, "rules.0: a rule has exactly one of regex, json, .*, got none"),
        ({"json": True, "max_words": 3}, "got json and max_words; write several rules"),
        ({"json": False}, "rules.0.json"),
        ({"max_words": -1}, "rules.0.max_words"),
        ({"min_words": 0}, "rules.0.min_words"),
        ({"max_words": 3, "weight": 0}, "rules.0.weight"),
        ({"contains": []}, "rules.0.contains: is empty"),
        ({"excludes": [""]}, "rules.0.excludes"),
        ({"jsn": True}, "unknown key 'jsn' in rules.0; did you mean 'json'"),
    ],
)
def test_a_wrong_rule_is_one_line(rule: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        validated(Holder, {"rules": [rule]})


def test_a_rule_survives_a_file() -> None:
    rule = Rule.model_validate({"json": True, "weight": 2})
    assert Rule.model_validate(rule.model_dump(mode="json")) == rule
