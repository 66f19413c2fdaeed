"""Items for readers: what was asked, expected and answered."""

from __future__ import annotations

from pathlib import Path

from untaxed.checkpoints import load_model, load_tokenizer
from untaxed.measuring import Subject, measure
from untaxed.measuring.abilities import Choice, Item, exact_match, multiple_choice
from untaxed.measuring.suite import Suite

ITEMS = [Item(f"w{n} w{n + 1}", f"w{n + 2}") for n in range(1, 7)]
CHOICES = [Choice(f"w{n}", ("w1 w2", "w3", "w4"), n % 3) for n in range(1, 7)]
BOTH = {"validation": ITEMS, "test": ITEMS}


def test_what_is_shown_agrees_with_what_is_scored(tiny_initial: Path) -> None:
    asked = multiple_choice("choices", {"validation": CHOICES, "test": CHOICES})
    written = exact_match("written", {"validation": ITEMS, "test": ITEMS})
    suite = Suite((asked, written), ("choices", "written"), (), {})
    subject = Subject(load_model(tiny_initial), load_tokenizer(tiny_initial), suite)
    scores = measure(subject, "test").scores
    places = [4, 0, 2]
    for one in (asked, written):
        assert one.show is not None
        shown = one.show(subject, "test", places)
        for place, item in zip(places, shown, strict=True):
            right = scores[one.key][place, 0] == 1
            begins = item.answer.split()[: len(item.expected.split())] == item.expected.split()
            assert (item.answer == item.expected if one is asked else begins) == right
    assert [item.prompt for item in shown] == ["w5 w6", "w1 w2", "w3 w4"]
