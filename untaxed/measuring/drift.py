"""Drift: how far a model is from its initial one, without a task. Never an ability.

Every measure takes the prompts after which texts are sampled: those of alignment, or general ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .. import divergence
from .batching import Batch
from .forward import pieces, totals
from .sampling import Completions
from .subject import Subject
from .suite import Measure, PromptSet, Scores, Split


def forward_kl(name: str = "forward_kl", prompts: PromptSet = "prompts") -> Measure:
    r"""Token-mean KL(initial ‖ policy), exact over the vocabulary, on samples from the initial model.

    .. math:: \frac{1}{N} \sum_{y \sim initial} \sum_t KL(p_{initial}(\cdot|y_{<t}) \,\|\, p_{policy}(\cdot|y_{<t}))

    N counts the samples' tokens, the end of text included. The samples are the same for every model of a study; the
    value is exactly 0 for the initial model. It grows when the policy drops what the initial model would write.
    """

    def score(subject: Subject, split: Split) -> Scores:
        def values(batch: Batch, initial: Tensor) -> Tensor:
            return _kl(initial, subject.logits(batch))

        return token_sums(subject, subject.initial, split, name, values, prompts)

    return Measure("drift", name, "token_mean", score, unit="nats a token", against="tokens", prompts=prompts)


def reverse_kl(name: str = "reverse_kl", prompts: PromptSet = "prompts") -> Measure:
    """Token-mean KL(policy ‖ initial), exact over the vocabulary, on samples from the policy.

    It grows when the policy writes what the initial model would not, and is what a KL penalty in training holds down.
    """

    def score(subject: Subject, split: Split) -> Scores:
        def values(batch: Batch, policy: Tensor) -> Tensor:
            return _kl(policy, subject.initial.logits(batch))

        return token_sums(subject, subject, split, name, values, prompts)

    return Measure("drift", name, "token_mean", score, unit="nats a token", against="tokens", prompts=prompts)


def entropy(name: str = "entropy", prompts: PromptSet = "prompts") -> Measure:
    """Token-mean entropy of the policy on its own samples; it falls when the policy collapses."""

    def score(subject: Subject, split: Split) -> Scores:
        def values(_: Batch, policy: Tensor) -> Tensor:
            return torch.cat([divergence.entropy(part) for (part,) in pieces(policy)])

        return token_sums(subject, subject, split, name, values, prompts)

    return Measure("drift", name, "token_mean", score, unit="nats a token", prompts=prompts)


def length(name: str = "length", prompts: PromptSet = "prompts") -> Measure:
    """Mean number of tokens of the policy's own samples, the end of text included."""

    def score(subject: Subject, split: Split) -> Scores:
        return token_counts(subject.completions(split, prompts))[:, None]

    each = token_counts if prompts == "prompts" else None  # best-of-n draws after the prompts of alignment alone
    return Measure("drift", name, "mean", score, unit="tokens", each=each, prompts=prompts)


def token_counts(drawn: Completions) -> Scores:
    """How many tokens each response has, the end of text included: ``(items,)``."""
    return drawn.mask.sum(1).double().numpy()


def token_sums(
    subject: Subject,
    writer: Subject,
    split: Split,
    what: str,
    values: Callable[[Batch, Tensor], Tensor],
    prompts: PromptSet = "prompts",
) -> Scores:
    """Sum and count, for every sample of `writer`, of a number a token, ``(items, 2)``.

    Args:
        subject: The model under measurement.
        writer: It, or its initial one.
        split: Which prompts the samples follow.
        what: Names the number.
        values: Maps a batch of samples and their writer's logits to the numbers.
        prompts: Of which set.
    """
    sums = np.zeros((len(writer.completions(split, prompts).texts), 2))
    for number, batch in enumerate(writer.sample_batches(split, prompts)):

        def compute(number: int = number, batch: Batch = batch) -> Tensor:
            return values(batch, writer.sample_logits(split, number, prompts))

        sums += totals(subject.per_token(batch, what, compute), batch.owners, len(sums))
    return sums


def _kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    q_logits = q_logits.to(p_logits.device)
    return torch.cat([divergence.token_kl(p, q) for p, q in pieces(p_logits, q_logits)])
