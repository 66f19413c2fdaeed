"""Runs a model over batches and reads its logits only where something is scored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .encoding import LOGIT_ENTRIES, Batch
from .suite import Scores


def logits_at(model: Any, batch: Batch) -> Tensor:
    """The logits at the scored places of a batch, ``(scored, vocabulary)``."""
    device = next(model.parameters()).device
    mask = None if batch.attention_mask is None else batch.attention_mask.to(device)
    inputs = {"input_ids": batch.input_ids.to(device), "attention_mask": mask, "use_cache": False}
    return read(model, batch.rows.to(device), batch.columns.to(device), **inputs)[0]


def read(model: Any, rows: Tensor, columns: Tensor, **inputs: Any) -> tuple[Tensor, Any]:
    """Runs the model and reads its logits at some places only.

    The output layer is much of a small model's work and of any model's memory, so it is given the hidden states of
    those places only: a hook before it picks them. What an architecture does to its logits afterwards (scaling,
    soft-capping) stays as it is. A model without such a layer computes all logits, of which those are taken.

    Args:
        model: A causal language model of transformers.
        rows: ``(places,)``.
        columns: ``(places,)``, positions in the row; -1 is the last.
        inputs: The model's, ``input_ids`` ``(rows, length)`` among them.
    Returns:
        The logits ``(places, vocabulary)`` and the model's whole output.
    """
    shape = inputs["input_ids"].shape
    picked = False

    def pick(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal picked
        if not args or args[0].shape[:2] != shape:
            return None
        picked = True
        return (args[0][rows.to(args[0].device), columns.to(args[0].device)].unsqueeze(0), *args[1:])

    layer = model.get_output_embeddings()
    hook = None if layer is None else layer.register_forward_pre_hook(pick)
    try:
        output = model(**inputs)
    finally:
        if hook is not None:
            hook.remove()
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
