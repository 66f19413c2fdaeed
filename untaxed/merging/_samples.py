"""Token batches with the places that count, and the likelihood of what stands there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..errors import DataError

SAMPLED, KEPT = 5000, 2000  # the paper's numbers: responses drawn from the aligned model, and those of most reward
Scope = Literal["response", "all"]


@dataclass(frozen=True)
class Tokens:
    """Rows of token ids, padded on either side.

    Attributes:
        input_ids: ``(rows, length)``.
        attention_mask: The same shape, 1 where a token stands.
        response_mask: The same shape, 1 where a token of the response stands.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(part.shape) for part in (self.input_ids, self.attention_mask, self.response_mask)]
        if len(shapes[0]) != 2 or len(set(shapes)) > 1:
            raise DataError(f"token ids and their two masks must have one shape (rows, length), got {shapes}")

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def rows(self, start: int, stop: int | None = None, step: int = 1) -> Tokens:
        """Some of the rows."""
        part = slice(start, stop, step)
        return Tokens(self.input_ids[part], self.attention_mask[part], self.response_mask[part])

    def to(self, device: torch.device | str) -> Tokens:
        return Tokens(*(part.to(device) for part in (self.input_ids, self.attention_mask, self.response_mask)))


def token_batches(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], *, batch_size: int = 8, seed: int = 0
) -> list[Tokens]:
    """Puts prompts and their responses into shuffled batches, padded on the right.

    Args:
        prompts: Token ids of each prompt, at least one.
        responses: Token ids of each response, at least one; the end-of-text token belongs to it.
        batch_size: Rows of a batch; the last has what is left.
        seed: Of the order.
    Raises:
        DataError: A prompt or a response is empty, or their numbers differ.
    Example:
        >>> token_batches([[5], [6, 7]], [[1, 2], [3]], batch_size=2)[0].response_mask.sum().item()
        3
    """
    if len(prompts) != len(responses):
        raise DataError(f"every prompt needs one response, got {len(prompts)} and {len(responses)}")
    for number, pair in enumerate(zip(prompts, responses)):
        if not all(pair):
            raise DataError(f"the {'response' if pair[0] else 'prompt'} of row {number} has no token")
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    groups = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    return [_padded([(prompts[row], responses[row]) for row in group]) for group in groups]


def _padded(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tokens:
    length = max(len(prompt) + len(response) for prompt, response in pairs)
    ids, there, counted = (torch.zeros(len(pairs), length, dtype=torch.long) for _ in range(3))
    for row, (prompt, response) in enumerate(pairs):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.tensor([*prompt, *response])
        there[row, :end] = 1
        counted[row, len(prompt) : end] = 1
    return Tokens(ids, there, counted)


def best_by_reward(rewards: Sequence[float], keep: int = KEPT) -> list[int]:
    """Which samples have most reward, in their own order; of equal rewards the first.

    Args:
        rewards: Of every sample; the paper draws `SAMPLED`, 5,000.
        keep: How many; all where there are fewer.
    Raises:
        DataError: A reward is not finite.
    Example:
        >>> best_by_reward([0.1, 0.9, 0.5, 0.9], keep=2)
        [1, 3]

    Source: Lin et al. 2024, arXiv:2309.06256, appendix D.5.
    Differs: the paper keeps 5,000 of an unnamed number and then draws 2,000 of those at random.
    """
    for number, reward in enumerate(rewards):
        if not math.isfinite(reward):
            raise DataError(f"the reward of sample {number} is {reward}")
    return sorted(sorted(range(len(rewards)), key=lambda i: -rewards[i])[:keep])


def token_nll(model: nn.Module, batch: Tokens, scope: Scope = "response") -> tuple[Tensor, int]:
    """Negative log-likelihood of a causal model's tokens, summed, in nats, and how many tokens that are.

    Args:
        model: Of transformers, or one that takes and returns the same.
        batch: On the model's device.
        scope: The responses' tokens, or all of them, as the paper's code does.
    """
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    there = batch.attention_mask[:, :-1].bool() & batch.attention_mask[:, 1:].bool()  # read from a token, not a pad
    wanted = there & batch.response_mask[:, 1:].bool() if scope == "response" else there
    wide = torch.promote_types(logits.dtype, torch.float32)
    total = cross_entropy(logits[wanted].to(wide), batch.input_ids[:, 1:][wanted], reduction="sum")
    return total, int(wanted.sum())
