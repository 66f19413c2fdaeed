"""Held-out preference pairs: the reward that DPO maximises without naming it, and how often it is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ..errors import DataError
from .batching import Scored
from .encoding import encode_answers
from .forward import totals
from .subject import Subject
from .suite import Measure, Scores, Split


@dataclass(frozen=True)
class Pair:
    """A prompt with the answer that people preferred and the one that they did not."""

    prompt: str
    chosen: str
    rejected: str


PARTS = ("accuracy", "margin", "chosen", "rejected")


def pair_names(name: str) -> list[str]:
    """The names of the measures on pairs that are called so."""
    return [f"{name}_{part}" for part in PARTS]


class _Implicit:
    r"""Implicit rewards of pairs, ``(items, 2)``: of chosen and of rejected; computed once a model and split."""

    def __init__(self, name: str, pairs: Mapping[Split, Sequence[Pair]], beta: float) -> None:
        self.name, self.pairs, self.beta = name, pairs, beta
        self._known: WeakKeyDictionary[Subject, dict[Split, Scores]] = WeakKeyDictionary()

    def __call__(self, subject: Subject, split: Split) -> Scores:
        return self.beta * (self._likelihoods(subject, split) - self._likelihoods(subject.initial, split))

    def _likelihoods(self, subject: Subject, split: Split) -> Scores:
        known = self._known.setdefault(subject, {})
        if split not in known:
            scored = self._encoded(subject, split)
            sums = np.zeros((len(scored), 2))
            for batch in subject.batches(scored):
                sums += totals(subject.log_probs(batch), batch.owners, len(sums))
            known[split] = sums[:, 0].reshape(-1, 2)
        return known[split]

    def _encoded(self, subject: Subject, split: Split) -> list[Scored]:
        tokenizer: Any = subject.tokenizer
        end = tokenizer.eos_token
        questions = [
            (pair.prompt, [_without(text, end) for text in (pair.chosen, pair.rejected)]) for pair in self.pairs[split]
        ]
        groups = encode_answers(tokenizer, questions, eos=end is not None, where=f"{self.name} {split} pair")
        scored = [one for group in groups for one in group]
        limit = subject.context
        if long := sum(limit is not None and len(one.tokens) - 1 > limit for one in scored):
            raise DataError(
                f"{self.name} {split}: {long} of {len(scored)} answers are longer with their prompts than the model's "
                f"context of {limit} tokens; none is cut: leave them out by `max_chars`"
            )
        return scored


def _without(text: str, end: str | None) -> str:
    """The answer without the end-of-text token, which is added as a token."""
    return text.removesuffix(end).rstrip() if end else text


def implicit_rewards(name: str, pairs: Mapping[Split, Sequence[Pair]], *, beta: float = 0.1) -> tuple[Measure, ...]:
    r"""The implicit reward of DPO on held-out pairs, as four measures.

    .. math:: r(x, y) = \beta\,\big(\log \pi(y|x) - \log \pi_{initial}(y|x)\big)

    - ``<name>_accuracy``: share of pairs with r(chosen) > r(rejected), equal ones counted half;
    - ``<name>_margin``: mean of r(chosen) − r(rejected);
    - ``<name>_chosen``, ``<name>_rejected``: mean of each. A falling ``chosen`` beside a growing margin means that the
      model also unlearns what people preferred.

    log π sums over the answer's tokens and the end-of-text token. The initial model itself has 0 everywhere, and an
    accuracy of 0.5.

    Args:
        name: Begins the measures' names.
        pairs: The pairs of each split.
        beta: As in the training; it scales all but the accuracy.

    Source: Rafailov et al. 2023 (DPO), arXiv:2305.18290, section 4.
    """
    implicit = _Implicit(name, pairs, beta)

    def measure(what: str, of: Callable[..., Any], unit: str) -> Measure:
        def score(subject: Subject, split: Split) -> Scores:
            chosen, rejected = implicit(subject, split).T
            return np.asarray(of(chosen, rejected), dtype=np.float64)[:, None]

        return Measure("reward", f"{name}_{what}", "mean", score, unit=unit, against="texts")

    for split, rows in pairs.items():
        if not rows:
            raise DataError(f"preferences {name!r} have no {split} pairs")
    return (
        measure("accuracy", lambda chosen, rejected: (np.sign(chosen - rejected) + 1) / 2, "share of pairs right"),
        measure("margin", lambda chosen, rejected: chosen - rejected, "nats, times beta"),
        measure("chosen", lambda chosen, _: chosen, "nats, times beta"),
        measure("rejected", lambda _, rejected: rejected, "nats, times beta"),
    )
