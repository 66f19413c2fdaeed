"""How often a model's answer is preferred to the initial model's, and what is left of a gain at equal length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import numpy as np

from ..errors import Undefined
from .rewards import Rated
from .subject import Subject
from .suite import Measure, Scores, Split

WON, TIED, LOST = 1.0, 0.5, 0.0
AT_EQUAL_LENGTH = "_at_equal_length"  # ends the names of such measures
MOST_UNDEFINED = 0.1  # of the items; beyond it there is no win rate

# (prompts, the model's answers, the initial model's) -> one a prompt: 1 where the model's is better, 0.5 for a tie, 0
# where the initial model's is, and between them where orders disagree; or a text, the reason why it is not known
Judge = Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float | str]]


class Contest:
    """Judged items of one pair of models, judged once: ``(items, 2)``, outcome and whether it is known.

    Equal answers are a tie, and nobody is asked.

    Args:
        name: In results.
        judge: What compares two answers.
    """

    def __init__(self, name: str, judge: Judge) -> None:
        self.name, self.judge = name, judge
        self._known: WeakKeyDictionary[Subject, dict[Split, Scores | Undefined]] = WeakKeyDictionary()

    def __call__(self, subject: Subject, split: Split) -> Scores:
        """The outcomes; where there are none, the same reason for all that ask.

        Raises:
            Undefined: More than a tenth of the items have no outcome; the reasons are counted.
        """
        known = self._known.setdefault(subject, {})
        if split not in known:
            try:
                known[split] = self._judged(subject, split)
            except Undefined as reason:
                known[split] = reason
        found = known[split]
        if isinstance(found, Undefined):
            raise found
        return found

    def _judged(self, subject: Subject, split: Split) -> Scores:
        ours, theirs = subject.completions(split), subject.initial.completions(split)
        scores = np.tile([TIED, 1.0], (len(ours.texts), 1))
        asked = [at for at, (a, b) in enumerate(zip(ours.texts, theirs.texts, strict=True)) if a != b]
        if not asked:
            return scores
        columns = (ours.prompts, ours.texts, theirs.texts)
        outcomes = self.judge(*([column[at] for at in asked] for column in columns))
        reasons = [outcome for outcome in outcomes if isinstance(outcome, str)]
        if len(reasons) > MOST_UNDEFINED * len(scores):
            raise Undefined(f"{len(reasons)} of {len(scores)} items could not be judged: {counted(reasons)}")
        for at, outcome in zip(asked, outcomes, strict=True):
            scores[at] = (0.0, 0.0) if isinstance(outcome, str) else (outcome, 1.0)
        return scores


def counted(reasons: Sequence[str]) -> str:
    """Reasons with how often each came up, the most frequent first."""
    found = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
    return "; ".join(f"{count} × {reason}" for reason, count in sorted(found.items(), key=lambda one: -one[1]))


def win_rate(contest: Contest) -> Measure:
    """Share of prompts after which the model's answer is preferred to the initial model's, ties counted half.

    Items that could not be judged are left out and counted. The initial model against itself has 0.5.
    """

    def outcomes(scores: Scores) -> dict[str, int]:
        known = scores[scores[:, 1] > 0, 0]
        return {
            "lost": int((known < TIED).sum()),
            "won": int((known > TIED).sum()),
            "tied": int((known == TIED).sum()),
            "undefined": len(scores) - len(known),
        }

    unit = "share preferred to initial's"
    return Measure("reward", contest.name, "token_mean", contest, unit=unit, against="texts", outcomes=outcomes)


def reward_judge(rated: Callable[[Sequence[str], Sequence[str]], np.ndarray]) -> Judge:
    """Prefers the answer of higher reward; equal rewards are a tie. A reward reads one answer, so there is no order."""

    def judge(prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> list[float]:
        first, second = rated(prompts, ours), rated(prompts, theirs)
        return ((np.sign(first - second) + 1) / 2).tolist()

    return judge


# --- at equal length -----------------------------------------------------------------------------------------------


def reward_at_equal_length(rated: Rated) -> Measure:
    r"""What a reward has gained at equal length: the line of gains over differences in length, where these are 0.

    .. math:: r(y_i) - r(y^0_i) = a + b\,(|y_i| - |y^0_i|) + \varepsilon_i

    with y the model's and y⁰ the initial model's answer to prompt i, lengths in characters, and a, by least squares,
    the number shown.

    Source: Dubois et al. 2024 (length-controlled AlpacaEval), arXiv:2404.04475.
    Differs: a least-squares line instead of a logistic regression, the difference itself instead of the tanh of its
        standardised value, and no term for the difficulty of each instruction; what is controlled is any reward.
    """

    def score(subject: Subject, split: Split) -> Scores:
        gain = rated(subject, split) - rated(subject.initial, split)
        return _sums(gain, np.ones(len(gain)), _length_gain(subject, split))

    return Measure("reward", rated.name + AT_EQUAL_LENGTH, "at_equal_length", score, unit="reward won", against="texts")


def win_rate_at_equal_length(contest: Contest) -> Measure:
    """The win rate at equal length: as `reward_at_equal_length`, of the outcomes of a contest.

    A straight line may leave [0, 1] where all answers differ much in length one way.
    """

    def score(subject: Subject, split: Split) -> Scores:
        outcome, known = contest(subject, split).T
        return _sums(outcome, known, _length_gain(subject, split))

    unit = "share preferred to initial's"
    return Measure("reward", contest.name + AT_EQUAL_LENGTH, "at_equal_length", score, unit=unit, against="texts")


def _length_gain(subject: Subject, split: Split) -> np.ndarray:
    """How many characters longer each answer is than the initial model's."""
    pairs = zip(subject.completions(split).texts, subject.initial.completions(split).texts, strict=True)
    return np.array([float(len(ours) - len(theirs)) for ours, theirs in pairs])


def _sums(y: np.ndarray, known: np.ndarray, x: np.ndarray) -> Scores:
    """What a line needs of every item, ``(items, 5)``; zeros where `known` is 0."""
    return known[:, None] * np.stack([np.ones_like(x), x, y, x * y, x * x], axis=1)
