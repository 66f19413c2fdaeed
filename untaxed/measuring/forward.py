"""Runs a model over batches and reads its logits only where something is scored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..decoding import LogitMixture
from .batching import LOGIT_ENTRIES, Batch, Context
from .places import only_places
from .suite import Scores


def logits_at(model: Any, batch: Batch) -> Tensor:
    """The logits at the scored places of a batch, ``(scored, vocabulary)``."""
    device = next(model.parameters()).device
    inputs: dict[str, Any] = {"input_ids": batch.input_ids.to(device), "attention_mask": batch.mask.to(device)}
    if batch.context is None:
        inputs["use_cache"] = False
    else:
        inputs |= _after(model, batch.context, **inputs)
    return read(model, batch.rows.to(device), batch.columns.to(device), **inputs)[0]


def _after(model: Any, context: Context, *, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
    """Reads the contexts, and returns what makes every row go on from its own."""
    device = input_ids.device
    mask, parents = context.mask.to(device), context.parents.to(device)
    positions = positions_of(mask)
    place = torch.zeros(1, dtype=torch.long, device=device)  # no logits of the contexts are needed; one is the fewest
    inputs = {"input_ids": context.input_ids.to(device), "attention_mask": mask, "position_ids": positions}
    cache = read(model, place, place, use_cache=True, **inputs)[1].past_key_values
    cache.batch_select_indices(parents)
    offsets = torch.arange(input_ids.shape[1], device=device)
    return {
        "attention_mask": torch.cat([mask[parents], attention_mask], dim=1),
        "position_ids": positions[parents, -1:] + 1 + offsets,
        "past_key_values": cache,
        "use_cache": True,
    }


def positions_of(mask: Tensor) -> Tensor:
    """The position of every token from 0, whatever stands to its left: ``(rows, length)``."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def read(model: Any, rows: Tensor, columns: Tensor, **inputs: Any) -> tuple[Tensor, Any]:
    """Runs the model and reads its logits at some places only.

    The output layer is much of a small model's work and of any model's memory, so it is given the hidden states of
    those places only (see `places`). What an architecture does to its logits afterwards (scaling, soft-capping) stays
    as it is. A model without such a layer computes all logits, of which those are taken.

    Args:
        model: A causal language model of transformers, or a mixture of two.
        rows: ``(places,)``.
        columns: ``(places,)``, positions in the row; -1 is the last.
        inputs: The model's, ``input_ids`` ``(rows, length)`` among them.
    Returns:
        The logits ``(places, vocabulary)`` and the model's whole output.
    """
    if isinstance(model, LogitMixture):
        cache = inputs.pop("past_key_values", None)
        output = model.mixed(lambda part, own: read(part, rows, columns, past_key_values=own, **inputs), cache)
        return output.logits, output
    with only_places(model, rows, columns, inputs["input_ids"].shape) as picked:
        output = model(**inputs)
    return (output.logits[0] if picked else output.logits[rows, columns]), output


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors cut alike along their first dimension, so that copies of a piece in float32 stay small."""
    size = max(1, LOGIT_ENTRIES // 4 // tensors[0].shape[-1])
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target, ``(scored,)``, float64 from float32 logits."""
    parts = []
    for part, wanted in pieces(logits, targets.to(logits.device)):
        part = part.float()
        parts.append(part.gather(1, wanted.unsqueeze(1)).squeeze(1) - torch.logsumexp(part, dim=-1))
    return torch.cat(parts).double().cpu()


def totals(values: Tensor, owners: Tensor, items: int) -> Scores:
    """Sum and count of the values that belong to each item, ``(items, 2)`` float64.

    Args:
        values: ``(scored,)``.
        owners: ``(scored,)`` the item each belongs to.
        items: How many items there are.
    """
    at = owners.numpy()
    sums = np.bincount(at, weights=values.double().cpu().numpy(), minlength=items)
    return np.stack([sums, np.bincount(at, minlength=items).astype(np.float64)], axis=1)
