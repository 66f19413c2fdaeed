"""Heterogeneous model averaging: the ratios of blocks, learned by the exact gradient of a loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

import numpy as np
from torch import nn

from ..checks import check_number
from ..errors import DataError, UsageError, nearest
from ..sites import Weights
from ._gradient import Loss, Measure, measured
from ._partition import Partition
from ._samples import Scope, Tokens, token_nll
from ._simplex import Array, check_share, project, tangent

BETAS, EPSILON = (0.9, 0.999), 1e-12


@dataclass(frozen=True)
class Step:
    """One step: the loss at the ratios, its derivative by each of them, and the rate of the step that followed."""

    loss: float
    ratios: tuple[float, ...]
    gradient: tuple[float, ...]
    learning_rate: float


@dataclass(frozen=True)
class Learned:
    """Ratios that were learned, and how.

    Attributes:
        ratios: By block.
        initial_share: The mean they were held to; the mean they have where they were free.
        steps: What happened, step by step; the ratios in the order of the blocks.
        held_out: Loss on the held-out batches of the start (plain averaging, unless another start was given) and of
            the result; None: there were none.
        settings: What was asked.
        seconds: How long it took.
    """

    ratios: dict[str, float]
    initial_share: float
    steps: list[Step]
    held_out: dict[str, float] | None
    settings: dict[str, Any]
    seconds: float

    def record(self) -> dict[str, Any]:
        """All of it as plain values, for files."""
        return asdict(self)


@dataclass
class Moments:
    """Adam's averages, with one second moment for all ratios.

    With one for each, the projected step would come to rest where the *scaled* gradient has no part along the
    constraint, which is no stationary point of the loss.
    """

    first: Array
    second: float = 0.0
    steps: int = field(default=0)

    def step(self, gradient: Array) -> Array:
        """The direction of the next step, about 1 in size where gradients agree."""
        self.steps += 1
        self.first = BETAS[0] * self.first + (1 - BETAS[0]) * gradient
        self.second = BETAS[1] * self.second + (1 - BETAS[1]) * float(np.mean(gradient**2))
        scale = math.sqrt(self.second / (1 - BETAS[1] ** self.steps)) + EPSILON
        return self.first / (1 - BETAS[0] ** self.steps) / scale


def learn_ratios(
    model: nn.Module,
    initial: Weights,
    aligned: Weights,
    partition: Partition,
    batches: Sequence[Tokens],
    *,
    initial_share: float,
    free: bool = False,
    start: Mapping[str, float] | None = None,
    low: float = 0.0,
    high: float = 1.0,
    learning_rate: float = 0.02,
    warmup: float = 0.03,
    epochs: int = 1,
    pull: float = 0.0,
    scope: Scope = "response",
    loss: Loss | None = None,
    rows_at_once: int | None = None,
    held_out: Sequence[Tokens] = (),
    on_step: Callable[[int, Step], None] | None = None,
) -> Learned:
    r"""Learns the ratios under which the average says best what the aligned model says with most reward.

    .. math::
        \min_{s}\; -\frac1N \sum_{(x,a)} \log \pi_{\theta(s)}(a|x) + \lambda \sum_k |s_k - s|
        \quad\text{with}\quad \textstyle\sum_k w_k s_k = s\sum_k w_k,\; s_k \in [l, h]

    with the exact gradient :math:`\partial L/\partial s_k = \sum_{W \in k} \langle \partial L/\partial W,
    W_{initial} - W_{aligned}\rangle`, summed tensor by tensor while the backward pass goes, so that neither merged
    copies nor a second gradient are held. Every step: write the average, forward, backward, sum over processes, a step
    of Adam with a cosine rate, projection (`project`).

    With batches of labelled rows it is the paper's AdaMerging baseline; any other loss is a callable. Under
    `torch.distributed` every process calls it with the same arguments and takes its part of each batch's rows; results
    are the same in all of them, and those of one process up to the order of sums.

    Args:
        model: A causal language model; gets its own weights back. In eval mode while it works.
        initial: Weights before alignment, by the model's names.
        aligned: Weights after alignment.
        partition: The blocks, the other tensors' policies, what a block counts in the mean.
        batches: The aligned model's own best responses (`best_by_reward`, `token_batches`).
        initial_share: :math:`s`, the mean that the ratios keep, and where they start.
        free: Do not keep the mean. For other losses: this one only falls towards aligned.
        start: Ratios to start from; projected onto what is allowed.
        low: :math:`l`.
        high: :math:`h`.
        learning_rate: The most a ratio moves in a step, about. The paper's 2e-5 moves none by a hundredth in its
            1,000 steps.
        warmup: Fraction of the steps in which the rate rises.
        epochs: Passes over the batches.
        pull: :math:`\lambda`, towards the mean.
        scope: The tokens of the responses, or all, as the paper's code does.
        loss: ``loss(model, tokens) -> (sum, count)`` in place of `token_nll`; differentiable in the model's weights.
        rows_at_once: Rows of one forward pass; None: the whole batch.
        held_out: Batches on which start and result are compared.
        on_step: Called after every step with its number and what it was.
    Raises:
        UsageError: Weights, partition and model do not fit, or a number is out of range.
        DataError: There are no batches, or no token counts.
        UntaxedError: The loss is not finite.

    Source: Lin et al. 2024, arXiv:2309.06256, equations 8 to 11 and algorithm 1.
    Differs: exact projection in place of normalised sigmoids, which leave [0, 1] (their equation 11 lacks the factor K
    too); no packing into pieces of 512 tokens; one second moment for all ratios. The released code evaluates every
    gradient at equal ratios, never resets gradients, and steps some 60 times a step.
    """
    _check(batches, learning_rate=learning_rate, warmup=warmup, epochs=epochs, pull=pull, scope=scope)
    check_share(initial_share, low, high)
    began, score = time.monotonic(), loss or (lambda module, batch: token_nll(module, batch, scope))
    weights, count = partition.weights, epochs * len(batches)
    settings = {
        "initial_share": initial_share, "free": free, "low": low, "high": high, "learning_rate": learning_rate,
        "warmup": warmup, "epochs": epochs, "pull": pull, "scope": scope, "steps": count,
        "weighting": partition.weighting, "policies": dict(partition.policies),
    }  # fmt: skip

    def allowed(values: Array) -> Array:
        return (
            np.clip(values, low, high) if free else project(values, initial_share, weights=weights, low=low, high=high)
        )

    rest_share = None if free else initial_share
    ratios = allowed(np.array(partition.ordered(start or partition.equal(initial_share))))
    first, moments, steps = ratios, Moments(np.zeros(len(ratios))), []
    with measured(model, initial, aligned, partition, score, rest_share, rows_at_once) as measure:
        for number in range(count):
            value, gradient = measure(ratios, batches[number % len(batches)], where=f"step {number}")
            gradient = gradient + pull * np.sign(ratios - initial_share)
            rate = learning_rate * _schedule(number, count, warmup)
            steps.append(Step(value, tuple(ratios.tolist()), tuple(gradient.tolist()), rate))
            ratios = allowed(ratios - rate * moments.step(gradient if free else tangent(gradient, weights)))
            if on_step is not None:
                on_step(number, steps[-1])
        compared = {name: _mean_loss(measure, at, held_out) for name, at in (("start", first), ("result", ratios))}
    named = partition.named(ratios)
    mean = partition.mean(named) if free else initial_share
    return Learned(named, mean, steps, compared if held_out else None, settings, time.monotonic() - began)


def _check(batches: Sequence[Tokens], *, epochs: int, scope: str, **numbers: float) -> None:
    for name, value in numbers.items():
        check_number(name, value)
        if value < 0:
            raise UsageError(f"{name} must not be negative, got {value}")
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise UsageError(f"epochs must be at least 1, got {epochs!r}")
    if scope not in get_args(Scope):
        raise UsageError(f"unknown scope {scope!r}{nearest(str(scope), get_args(Scope))}")
    if not batches:
        raise DataError("there are no batches to learn ratios from")


def _schedule(step: int, count: int, warmup: float) -> float:
    """Linear rise, then half a cosine; the last step is above 0."""
    rising = math.ceil(warmup * count)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, count - rising)))


def _mean_loss(measure: Measure, ratios: Array, batches: Sequence[Tokens]) -> float:
    """The mean over batches, each counted by its rows."""
    losses = [measure(ratios, batch, where="held-out batch", gradient=False)[0] for batch in batches]
    return float(np.average(losses, weights=[len(batch) for batch in batches])) if batches else math.nan
