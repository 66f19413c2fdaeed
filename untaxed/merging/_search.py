"""Heterogeneous model averaging beyond the paper: ratios searched against what is really wanted."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from ..errors import DataError, UsageError, nearest
from ._evaluations import Log, check_plain, opened, plain
from ._goals import Evaluation, Front, Goal, front, points
from ._partition import Partition
from ._proposers import Algorithm, Space, proposer
from ._simplex import Array, check_share

Evaluate = Callable[[dict[str, float]], Mapping[str, Any]]
DIGITS = 9  # of a proposed ratio, so that another machine's last bits propose the same
IDLE = 100  # proposals without anything new after which a search is over


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes:
        best: The best evaluation that keeps to the goal's limit; None, with the reason, where none does. Of a front
            the evaluation whose loss would shrink its area most.
        why: Why there is no best.
        front: What nothing else dominates, from most reward down.
        averaging: The best of plain averaging, all ratios equal, by the same goal, or None.
        evaluations: All, in order.
        measured: How many of them were measured now; the others stood in the log.
        goal: Name and limits.
    """

    best: Evaluation | None
    why: str | None
    front: list[Evaluation]
    averaging: Evaluation | None
    evaluations: list[Evaluation]
    measured: int
    goal: dict[str, Any]

    @property
    def ratios(self) -> dict[str, float] | None:
        """The best ratios, by block."""
        return None if self.best is None else self.best.ratios

    def record(self) -> dict[str, Any]:
        """All of it as plain values, for files."""
        return asdict(self)


def search_ratios(
    evaluate: Evaluate,
    partition: Partition,
    goal: Goal,
    *,
    initial_share: float | None = None,
    evaluations: int = 60,
    algorithm: Algorithm = "model",
    seed: int = 0,
    common_seed: int = 0,
    log: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    on_evaluation: Callable[[int, Evaluation], None] | None = None,
) -> Searched:
    """Searches the ratios of blocks for reward and tax as they are measured, without gradients.

    Starts with plain averaging (the asked mean, or five shares from aligned to initial), so that what the blocks are
    worth can be seen. Every candidate meets the same random numbers: torch's, numpy's and Python's generators are
    seeded alike before each, and given back. Of one seed the same values lead to the same proposals, so a search that
    was killed goes on when it is started again with its log, and one with more evaluations begins with the others'.

    Args:
        evaluate: From ratios by block to ``reward`` and ``tax`` (None where undefined) and whatever else shall be
            logged, as its text where it is no plain value; measured on validation, and on the abilities that may be
            chosen on. Within `blended` it costs a pass over memory: ``blend.write(ratios)``, then measure.
        partition: The blocks.
        goal: `MostReward`, `LeastTax` or `Front`.
        initial_share: The mean that the ratios keep; None: none, and then averaging is searched with them.
        evaluations: How many ratios to evaluate in all.
        algorithm: ``model`` interpolates what was seen and needs fewest evaluations; ``cmaes`` is CMA-ES, for a front
            two of them; ``random`` is the control.
        seed: Of the proposals.
        common_seed: Of the random numbers that all candidates meet.
        log: A JSONL file that keeps every evaluation; it is gone on with if it exists.
        about: What else the values depend on (models, measures, samples), as plain values, none of them NaN. A log of
            something else is refused.
        on_evaluation: Called with the number and the evaluation after each, also of those in the log.
    Raises:
        UsageError: An argument is out of range; `StoreError` for the log.
        DataError: The evaluator returned no reward or tax.

    Source: ours; the problem is that of Lin et al. 2024, arXiv:2309.06256, equation 3.
    """
    _check(goal, initial_share, evaluations, algorithm)
    check_plain("about", about or {})
    space = Space(partition.weights, initial_share)
    problem = {**partition.describe(), "common_seed": common_seed, "about": dict(about or {})}
    with opened(log, problem) as kept:
        run = _Run(evaluate, partition, kept, evaluations, common_seed, on_evaluation)
        run.go(space, goal, None if space.single else proposer(algorithm, space, goal, seed))
    return _searched(run, goal, len(space.even()))


def _check(goal: Goal, initial_share: float | None, evaluations: int, algorithm: str) -> None:
    if initial_share is not None:
        check_share(initial_share)
    if isinstance(evaluations, bool) or not isinstance(evaluations, int) or evaluations < 1:
        raise UsageError(f"evaluations must be at least 1, got {evaluations!r}")
    if algorithm not in get_args(Algorithm):
        raise UsageError(f"unknown algorithm {algorithm!r}{nearest(str(algorithm), get_args(Algorithm))}")
    if not isinstance(goal, Goal):
        raise UsageError(f"the goal must be MostReward(…), LeastTax(…) or Front(…), got {goal!r}")


class _Run:
    """One search: what it has evaluated, and how."""

    def __init__(
        self,
        evaluate: Evaluate,
        partition: Partition,
        log: Log,
        most: int,
        common_seed: int,
        listen: Callable[[int, Evaluation], None] | None,
    ) -> None:
        self.evaluate, self.partition, self.log, self.most = evaluate, partition, log, most
        self.common_seed, self.listen = common_seed, listen
        self.done: dict[tuple[float, ...], Evaluation] = {}
        self.measured = 0

    def go(self, space: Space, goal: Goal, proposals: Any) -> None:
        self._all(space.even(), proposals)
        idle = 0
        while proposals is not None and len(self.done) < self.most and idle < IDLE:
            before = len(self.done)
            self._all([np.round(ratios, DIGITS) for ratios in proposals.ask()], proposals, tell=True)
            idle = 0 if len(self.done) > before else idle + 1

    def _all(self, candidates: list[Array], proposals: Any, *, tell: bool = False) -> None:
        seen, found = len(self.done), []
        for ratios in candidates:
            evaluation = self._one(self.partition.named(ratios))
            if evaluation is None:
                return  # the budget is spent within a generation
            found.append(evaluation)
        if proposals is not None and (tell or proposals.learns_from_all):
            values = points(list(self.done.values())) if proposals.looks_back else np.empty((0, 2))
            proposals.tell(candidates, points(found), values[:seen])

    def _one(self, ratios: dict[str, float]) -> Evaluation | None:
        key = tuple(ratios.values())
        if key not in self.done:
            if len(self.done) >= self.most:
                return None
            self.done[key] = self.log.get(ratios) or self._measure(ratios)
            if self.listen is not None:
                self.listen(len(self.done) - 1, self.done[key])
        return self.done[key]

    def _measure(self, ratios: dict[str, float]) -> Evaluation:
        began = time.monotonic()
        with common_numbers(self.common_seed):
            values = self.evaluate(dict(ratios))
        for name in ("reward", "tax"):
            value = values.get(name, "nothing") if isinstance(values, Mapping) else "nothing"
            if value is not None and (isinstance(value, bool | str) or not hasattr(value, "__float__")):
                raise DataError(f"the evaluator must return a number or None as {name!r}, got {value!r}")
        self.measured += 1
        numbers = {name: None if values[name] is None else float(values[name]) for name in ("reward", "tax")}
        return self.log.add(Evaluation(ratios, {**values, **numbers}, time.monotonic() - began))


@contextmanager
def common_numbers(seed: int) -> Iterator[None]:
    """Seeds the generators of torch, numpy and Python, and gives them back as they were."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


def _searched(run: _Run, goal: Goal, even: int) -> Searched:
    every = list(run.done.values())
    values = points(every)
    index, control = goal.best(values), goal.best(values[:even])
    on_front = front(values)
    if isinstance(goal, Front) and on_front:
        index = _most_missed(goal, values, on_front)
    settings: dict[str, Any] = asdict(goal)  # type: ignore[call-overload]
    limits = ", ".join(f"{name} = {limit}" for name, limit in settings.items())
    why = None if index is not None else f"none of {len(every)} evaluations keeps to {limits or 'a defined value'}"
    return Searched(
        best=None if index is None else every[index],
        why=why,
        front=[every[at] for at in on_front],
        averaging=None if control is None else every[control],
        evaluations=every,
        measured=run.measured,
        goal=plain({"name": type(goal).__name__, **settings}),
    )


def _most_missed(goal: Front, values: Array, on_front: list[int]) -> int:
    missed = [
        goal.gains(values[at : at + 1], values[[o for o in on_front if o != at]], within=values)[0] for at in on_front
    ]
    return on_front[int(np.argmax(missed))]
