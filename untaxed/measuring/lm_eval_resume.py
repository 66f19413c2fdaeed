"""lm-evaluation-harness's reader of models, asked part by part, so that a measurement that is cut off can go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, float64, tensor

from .journal import Journal

PASSES = 4  # forward passes of a part, which is what a kill may lose; within it the model reads in its own order


def resuming(reader: Any, journal: Journal, batch_size: int) -> Any:
    """A class of readers that note in a journal what they are asked and answer.

    Args:
        reader: ``lm_eval.models.huggingface.HFLM``, or another class with its methods.
        journal: Where.
        batch_size: Requests of a forward pass.
    """

    class Resuming(reader):
        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            ask = super().loglikelihood
            rows = _in_parts(requests, journal, batch_size, "loglikelihood", lambda part: _numbers(ask(part)))
            return [(total, bool(greedy)) for total, greedy in rows]

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            ask = super().loglikelihood_rolling
            return _in_parts(requests, journal, batch_size, "loglikelihood_rolling", lambda part: _numbers(ask(part)))

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            return _in_parts(requests, journal, batch_size, "generate_until", super().generate_until)

    return Resuming


def _numbers(answers: Any) -> Tensor:
    return tensor(list(answers), dtype=float64)


def _in_parts(
    requests: Sequence[Any], journal: Journal, batch_size: int, kind: str, ask: Callable[[list[Any]], Any]
) -> list[Any]:
    """The answers to all requests, in their order; like ones are asked together, as of one question's choices."""
    order = sorted(range(len(requests)), key=lambda at: (-len(requests[at].args[0]), requests[at].args[0]))
    answers: list[Any] = [None] * len(requests)
    for first in range(0, len(order), batch_size * PASSES):
        chosen = order[first : first + batch_size * PASSES]
        part = [requests[at] for at in chosen]
        found = journal.once(partial(_about, kind, part), partial(ask, part))
        for at, answer in zip(chosen, found.tolist() if isinstance(found, Tensor) else found, strict=True):
            answers[at] = answer
    return answers


def _about(kind: str, part: Sequence[Any]) -> list[Any]:
    return [kind, [list(request.args) for request in part]]
