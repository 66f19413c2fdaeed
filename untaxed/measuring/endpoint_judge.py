"""An endpoint as judge: every pair asked in both orders, answers kept, nothing made up."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..errors import SpecError, StoreError
from .endpoint import Answer, Busy, Endpoint, NoAnswer
from .judges import question

log = logging.getLogger("untaxed.prepare.judge")

ASKED = "Reply with one word: A if answer A is better, B if answer B is better, tie if they are equally good."
VERDICT = re.compile(r"\W*(?:(?:the better )?answer (?:is )?)?(A|B|tie)(?: is better)?\W*", re.IGNORECASE)
IN_A_ROW = 8  # questions without an answer after all tries: then the endpoint is taken to be down
DOWN = "not asked any more after so many without an answer"
TOKEN_CHARACTERS = 4  # about so many a token, for an estimate of cost


@dataclass(frozen=True)
class Price:
    """Of a million tokens, in whatever currency: those read and those written."""

    input: float
    output: float

    def of(self, tokens: tuple[float, float]) -> float:
        """What so many tokens cost."""
        return (self.input * tokens[0] + self.output * tokens[1]) / 1e6


def _money(amount: float) -> str:
    return f"{amount:.6f}".rstrip("0") if 1e-6 < amount < 0.01 else f"{amount:.2f}"


class EndpointJudge:
    """Asks an endpoint which of two answers is better, once in each order.

    The outcome is the mean over both orders: 1 where both prefer the model's answer, 0.5 where they contradict each
    other or call it a tie. A pair of which one order has no clear answer has no outcome, but a reason. Clear answers
    are kept in `cache` by the content of question and settings, at once, so that whatever ends a run, what was
    answered is not asked again.

    Args:
        name: In messages.
        endpoint: Whom to ask.
        cache: A folder.
        parallel: Questions on their way at once.
        price: For an estimate before and the sum after.
        output_tokens: At most so many an answer, for the estimate.
    """

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        cache: Path,
        *,
        parallel: int = 4,
        price: Price | None = None,
        output_tokens: int = 16,
    ) -> None:
        self.name, self.endpoint, self.price, self.parallel = name, endpoint, price, parallel
        self.output_tokens = output_tokens
        settings = json.dumps([endpoint.url, endpoint.model, dict(endpoint.parameters)], sort_keys=True)
        self._kept = _Kept(cache / f"{hashlib.sha256(settings.encode()).hexdigest()[:16]}.jsonl")

    def __call__(self, prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> list[float | str]:
        """The outcomes, see `untaxed.measuring.win_rates.Judge`.

        Raises:
            SpecError: The endpoint refuses key, model or address.
        """
        rows = list(zip(prompts, ours, theirs, strict=True))
        asked = [question(p, a, b) + ASKED for p, mine, other in rows for a, b in ((mine, other), (other, mine))]
        self._announce([text for text in asked if self._kept.get(text) is None], len(asked))
        found = self._ask_all(asked)
        return [_outcome(found[at], found[at + 1]) for at in range(0, len(found), 2)]

    def forecast(self, prompts: Sequence[str], *, new_tokens: int, models: int) -> str:
        """What may have to be asked at most, before any model has written anything."""
        asked = 2 * len(prompts) * models
        read = sum(len(question(prompt, "", "") + ASKED) for prompt in prompts) / TOKEN_CHARACTERS
        cost = self._cost(2 * models * (read + 2 * new_tokens * len(prompts)), asked)
        of = f"{models} models" if models > 1 else "the model"
        to = f"{self.endpoint.url} ({self.endpoint.model})"
        known = "less what was answered before; Ctrl-C stops before any"
        return f"{self.name}: at most {asked} requests to {to} for {of}{cost}, {known}"

    def _cost(self, read: float, answers: int) -> str:
        if self.price is None:
            return ""
        return (
            f", at most about {_money(self.price.of((read, float(answers * self.output_tokens))))} at the price given"
        )

    def _announce(self, new: Sequence[str], all_of_them: int) -> None:
        """The requests to come, and about what they cost, before the first."""
        cost = self._cost(sum(map(len, new)) / TOKEN_CHARACTERS, len(new))
        log.info(
            "%s: %d requests to %s (%s)%s; %d answers are known already",
            self.name, len(new), self.endpoint.url, self.endpoint.model, cost, all_of_them - len(new),
        )  # fmt: skip

    def _ask_all(self, asked: Sequence[str]) -> list[str | NoAnswer]:
        state = _State()
        pool = ThreadPoolExecutor(self.parallel)
        try:
            found = list(pool.map(lambda text: self._ask(text, state), asked))
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C what waits in line is not asked
        paid = f", {_money(self.price.of(state.tokens))} at the price given" if self.price else ""
        log.info(
            "%s: %d requests answered, %d tokens read and %d written%s", self.name, state.answered, *state.tokens, paid
        )
        return found

    def _ask(self, text: str, state: _State) -> str | NoAnswer:
        if (known := self._kept.get(text)) is not None:
            return known
        if state.down:
            return NoAnswer(DOWN)
        try:
            answer = self.endpoint.ask(text)
        except NoAnswer as reason:
            state.failed(isinstance(reason, Busy))
            return reason
        except SpecError:
            state.refused = True  # what waits in line is not asked
            raise
        state.add(answer)
        verdict = verdict_of(answer.text)
        if verdict is None:
            return NoAnswer("the reply is neither A nor B nor tie")
        self._kept.add(text, verdict)
        return verdict


def verdict_of(reply: str) -> str | None:
    """``A``, ``B`` or ``TIE`` where the first line of a reply says one of them and nothing else; None where not.

    Example:
        >>> verdict_of("**B**"), verdict_of("A is better."), verdict_of("A tie"), verdict_of("As for B")
        ('B', 'A', None, None)
    """
    match = VERDICT.fullmatch((reply.strip().splitlines() or [""])[0])
    return None if match is None else match[1].upper()


def _outcome(straight: str | NoAnswer, swapped: str | NoAnswer) -> float | str:
    """Of the model's answer, which is A at first and then B."""
    for one in (straight, swapped):
        if isinstance(one, NoAnswer):
            return str(one)
    values = {"A": 1.0, "B": 0.0, "TIE": 0.5}
    return (values[str(straight)] + 1 - values[str(swapped)]) / 2


class _State:
    """What the threads of one round share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_a_row = self.answered = 0
        self.refused = False
        self.tokens = (0, 0)

    @property
    def down(self) -> bool:
        return self.refused or self._in_a_row >= IN_A_ROW

    def failed(self, busy: bool) -> None:
        with self._lock:
            self._in_a_row = self._in_a_row + 1 if busy else 0

    def add(self, answer: Answer) -> None:
        with self._lock:
            self._in_a_row = 0
            self.answered += 1
            self.tokens = self.tokens[0] + answer.tokens[0], self.tokens[1] + answer.tokens[1]


class _Kept:
    """Clear answers by the hash of their question, a line of JSON each, written as they come."""

    def __init__(self, file: Path) -> None:
        self._file, self._lock = file, threading.Lock()
        self._known: dict[str, str] | None = None

    def get(self, text: str) -> str | None:
        with self._lock:
            if self._known is None:
                self._known = dict(_lines(self._file))
            return self._known.get(_digest(text))

    def add(self, text: str, verdict: str) -> None:
        line = "\n" + json.dumps([_digest(text), verdict])  # in front: what a killed process left is a line of its own
        with self._lock:
            assert self._known is not None  # an answer is looked up before it is asked for
            self._known[_digest(text)] = verdict
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("a", encoding="utf-8") as stream:
                    stream.write(line)
            except OSError as error:
                raise StoreError(f"{self._file}: cannot be written: {error.strerror or error}") from error


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """The answers in a file; a line that a killed process left half written is passed over."""
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            key, verdict = json.loads(line)
        except ValueError:
            continue
        if verdict in ("A", "B", "TIE"):
            yield key, verdict


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
