"""Draws completions from a model's own distribution, the same way for every model of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, Unsupported
from .batching import Scored, context_length
from .encoding import encode_prompts
from .forward import positions_of, read
from .journal import NOTHING_KEPT, Journal
from .suite import Sampling


@dataclass(frozen=True)
class Completions:
    """What a model wrote after each prompt.

    Attributes:
        prompts: The prompts.
        texts: The completions as text, without special tokens.
        prompt_ids: The prompts' tokens.
        token_ids: ``(items, max_new_tokens)``, padded on the right with zeros.
        mask: The same shape, True for drawn tokens, the end-of-text token included.
    """

    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    prompt_ids: tuple[tuple[int, ...], ...]
    token_ids: Tensor
    mask: Tensor

    def scored(self) -> list[Scored]:
        """Prompt and completion of every item, the completion's tokens to be scored."""
        lengths = self.mask.sum(1).tolist()
        drawn = [tuple(row[:n]) for row, n in zip(self.token_ids.tolist(), lengths, strict=True)]
        pairs = enumerate(zip(self.prompt_ids, drawn, strict=True))
        return [Scored(ids + new, len(ids), f"the completion of prompt {at}") for at, (ids, new) in pairs]


def sample(
    model: Any, tokenizer: Any, prompts: Sequence[str], sampling: Sampling, journal: Journal = NOTHING_KEPT
) -> Completions:
    """Draws one completion a prompt from softmax(logits / temperature), nothing cut off (no top-k, no top-p).

    Token t of item i is drawn by inverting the distribution function at a uniform number that depends on
    ``sampling.seed``, i and t only. So the draws do not depend on batches, touch no global random state, and are
    the same for every model: two models that agree write the same text, and differences between models are less noisy.

    Args:
        model: A causal language model of transformers, in evaluation mode.
        tokenizer: Its tokenizer.
        prompts: As texts.
        sampling: How.
        journal: Notes the draws batch by batch.
    Raises:
        DataError: No prompt, or prompt and completion do not fit into the model's context.
        Unsupported: The model has no key-value cache (a purely recurrent one).
    """
    ids = encode_prompts(tokenizer, prompts)
    check_prompts(ids, context_length(model), sampling)
    generator = torch.Generator().manual_seed(sampling.seed)
    uniform = torch.rand(len(ids), sampling.max_new_tokens, generator=generator, dtype=torch.float64)
    token_ids = torch.zeros(len(ids), sampling.max_new_tokens, dtype=torch.long)
    mask = torch.zeros(len(ids), sampling.max_new_tokens, dtype=torch.bool)
    order = sorted(range(len(ids)), key=lambda at: len(ids[at]))

    def draw(chosen: list[int]) -> Tensor:
        asked = [ids[at] for at in chosen]
        return _draw(model, asked, uniform[chosen], sampling.temperature, tokenizer.eos_token_id)

    for first in range(0, len(order), sampling.batch_size):
        chosen = order[first : first + sampling.batch_size]

        drawn = journal.once(partial(_about, ids, chosen, sampling), partial(draw, chosen))
        token_ids[chosen, : drawn.shape[1]] = drawn.clamp(min=0)
        mask[chosen, : drawn.shape[1]] = drawn >= 0
    kept = [row[:n] for row, n in zip(token_ids.tolist(), mask.sum(1).tolist(), strict=True)]
    texts = tokenizer.batch_decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Completions(tuple(prompts), tuple(texts), tuple(map(tuple, ids)), token_ids, mask)


def _about(ids: Sequence[Sequence[int]], chosen: Sequence[int], sampling: Sampling) -> list[Any]:
    """All that the draws of a batch depend on beside the model."""
    return ["drawn", asdict(sampling), list(chosen), [list(ids[at]) for at in chosen]]


def check_prompts(ids: Sequence[Sequence[int]], limit: int | None, sampling: Sampling) -> None:
    """Raises `DataError` where there is no prompt, or one that does not fit into the context with what is drawn."""
    if not ids:
        raise DataError("there are no prompts to sample from")
    for number, prompt in enumerate(ids):
        if limit is not None and len(prompt) + sampling.max_new_tokens > limit:
            raise DataError(
                f"prompt {number} has {len(prompt)} tokens, and {sampling.max_new_tokens} new ones do not fit into "
                f"the model's context of {limit}; shorten it or lower max_new_tokens"
            )


@torch.no_grad()
def _draw(model: Any, prompts: list[list[int]], uniform: Tensor, temperature: float, eos: int | None) -> Tensor:
    """Draws for one batch, ``(items, steps)``; -1 after the end-of-text token."""
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    new = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
    rows = torch.arange(len(prompts), device=device)
    uniform = uniform.to(device)
    going = torch.ones(len(prompts), dtype=torch.bool, device=device)
    cache, drawn = None, []
    for step in range(uniform.shape[1]):
        positions = positions_of(mask)[:, -new.shape[1] :]
        inputs = {"input_ids": new, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        logits, output = read(model, rows, torch.full_like(rows, -1), use_cache=True, **inputs)
        cache = getattr(output, "past_key_values", None)
        if cache is None:
            raise Unsupported(f"{type(model).__name__} keeps no key-value cache, which sampling goes on from")
        token = invert(logits, uniform[:, step], temperature)
        drawn.append(torch.where(going, token, -1))
        going = going & (token != eos) if eos is not None else going
        if not going.any():
            break
        new = token.unsqueeze(1)
        mask = torch.cat([mask, torch.ones_like(new)], dim=1)
    return torch.stack(drawn, dim=1).cpu()


def invert(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Draws from softmax(logits / temperature) by inverting its distribution function at uniform numbers in [0, 1).

    Args:
        logits: ``(items, vocabulary)``.
        uniform: ``(items,)``.
        temperature: Above 0; 0 takes the most probable token.
    Returns:
        ``(items,)`` token numbers.
    """
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = torch.softmax(logits.float() / temperature, dim=-1).cumsum(-1, dtype=torch.float64)
    wanted = uniform.unsqueeze(1) * cumulative[:, -1:]  # the last entry is 1 but for rounding
    return torch.searchsorted(cumulative, wanted, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)
