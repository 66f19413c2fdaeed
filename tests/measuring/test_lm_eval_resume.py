"""Readers of lm-evaluation-harness, asked part by part: same answers, in their order, each once."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from untaxed.measuring.journal import Journal
from untaxed.measuring.lm_eval_resume import PASSES, resuming


class Reader:
    """Answers as HFLM does, and counts what it is asked."""

    def __init__(self) -> None:
        self.parts: list[int] = []

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.parts.append(len(requests))
        return [(-0.1 * len(context + after), len(after) % 2 == 0) for context, after in (r.args for r in requests)]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        self.parts.append(len(requests))
        return [-0.3 * len(r.args[0]) for r in requests]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self.parts.append(len(requests))
        return [r.args[0][::-1] for r in requests]


class Kept(Journal):
    of = "model"

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    def once(self, about: Callable[[], Any], compute: Callable[[], Any]) -> Any:
        key = repr(about())
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]


def test_answers_are_those_of_the_reader_and_each_is_asked_once() -> None:
    size = 2
    asked = {
        "loglikelihood": [SimpleNamespace(args=("q" * (n % 7 + 1), "a" * (n % 3))) for n in range(29)],
        "loglikelihood_rolling": [SimpleNamespace(args=("t" * (n % 5 + 1),)) for n in range(13)],
        "generate_until": [SimpleNamespace(args=(f"p{n}", {"until": ["."]})) for n in range(19)],
    }
    journal = Kept()
    for kind, requests in asked.items():
        reader = resuming(Reader, journal, size)()
        assert getattr(reader, kind)(requests) == getattr(Reader(), kind)(requests)
        assert sum(reader.parts) == len(requests)
        assert max(reader.parts) <= size * PASSES
        journal.known.popitem()  # what a kill has lost
        again = resuming(Reader, journal, size)()
        assert getattr(again, kind)(requests) == getattr(Reader(), kind)(requests)
        assert again.parts == [reader.parts[-1]]
    assert resuming(Reader, journal, size)().loglikelihood([]) == []
