"""Computes the end of a model only where it is read: the output layer, and the last layer's feed-forward part.

Both work place by place, so what they are not given changes nothing where they are read. In a small model they are a
quarter of the work, and questions are read at a few of their places.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Size, Tensor

# Architectures whose last decoder layer ends in `hidden + mlp(…)`, with nothing but the final norm behind it.
FAMILIES = {"gemma", "gemma2", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"}


@contextmanager
def only_places(model: Any, rows: Tensor, columns: Tensor, shape: Size) -> Iterator[list[Tensor]]:
    """While the block runs, the model's logits are those of some places, in their order: ``(1, places, vocabulary)``.

    Args:
        model: A causal language model of transformers.
        rows: ``(places,)``.
        columns: ``(places,)``, positions in the row; -1 is the last.
        shape: Of the input in the block, ``(rows, length)``.
    Yields:
        What the output layer was given; empty after the block where it could not be done, as logits are whole then.
    """
    picked: list[Tensor] = []

    def pick(hidden: Tensor) -> Tensor:
        return hidden[rows.to(hidden.device), columns.to(hidden.device)].unsqueeze(0)

    def before_output(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or args[0].shape[:2] != shape:
            return None
        picked.append(pick(args[0]))
        return (picked[-1], *args[1:])

    def widen(_: Any, args: Any, output: Tensor) -> Tensor:
        wide = output.new_zeros(*shape, output.shape[-1])  # zeros: finite at the places that nobody reads
        wide[rows.to(output.device), columns.to(output.device)] = output[0]
        return wide

    handles = []
    if (layer := model.get_output_embeddings()) is not None:
        handles.append(layer.register_forward_pre_hook(before_output))
    if len(rows) < shape.numel() and (mlp := _last_feed_forward(model)) is not None:
        handles.append(mlp.register_forward_pre_hook(lambda _, args: (pick(args[0]),)))
        handles.append(mlp.register_forward_hook(widen))
    try:
        yield picked
    finally:
        for handle in handles:
            handle.remove()


def _last_feed_forward(model: Any) -> Any:
    known = model.config.get_text_config().model_type in FAMILIES
    return model.get_decoder().layers[-1].mlp if known else None
