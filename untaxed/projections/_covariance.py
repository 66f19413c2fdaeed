"""The covariance of what linear layers are given, over texts of a model: one forward pass, once."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..errors import DataError, RunFailed, Unsupported
from ..measuring.batching import DEVICE_BATCH_TOKENS, context_length
from ..measuring.encoding import encode_prompts
from ..measuring.isolation import undisturbed
from ..measuring.sampling import sample
from ..measuring.suite import Sampling
from ..weights import reshard
from ._processes import shared_out, summed

Accumulate = Literal["float32", "float64"]
TOKENS = {"cpu": 2048}  # of one forward pass: every pass reads and writes all sums once
COLUMNS = 96  # of the blocks on the diagonal; the upper triangle is all that is summed


@dataclass(frozen=True)
class Covariances:
    r"""What layers are given: :math:`\sum x x^\top` over all tokens.

    Attributes:
        sums: ``(inputs, inputs)`` by the first layer that has the input.
        owners: Layer -> under whose name its input's sum stands: its own, or that of one that is given the same tensor.
        tokens: How many were summed.
    """

    sums: dict[str, Tensor]
    owners: dict[str, str]
    tokens: int


def texts_of(
    model: nn.Module, tokenizer: Any, prompts: Sequence[str], *, max_tokens: int, continuations: int, seed: int
) -> list[tuple[int, ...]]:
    """The tokens whose inputs are protected: the prompts', and those that the model goes on with.

    Args:
        model: Writes the continuations, at temperature 1.
        tokenizer: Its own.
        prompts: General texts.
        max_tokens: Prompts are cut there, at their end.
        continuations: Tokens that the model adds to each, at most; 0: none.
        seed: Of the continuations.
    """
    ids = [tuple(row[:max_tokens]) for row in encode_prompts(tokenizer, prompts)]
    if not continuations:
        return ids
    texts = [tokenizer.decode(row, skip_special_tokens=True) if len(row) == max_tokens else prompt
             for row, prompt in zip(ids, prompts)]  # fmt: skip
    drawn = sample(model, tokenizer, texts, Sampling(continuations, seed=seed))
    return [one.tokens for one in drawn.scored()]


@torch.no_grad()
def covariances(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    texts: Sequence[Sequence[int]],
    *,
    accumulate: Accumulate = "float32",
) -> Covariances:
    """Sums over texts; padding does not count. Over several processes the texts are shared out.

    Args:
        model: A causal language model; it runs in evaluation mode and is afterwards as it was.
        layers: Its linear layers, by name.
        texts: Tokens.
        accumulate: In which precision sums go on from one batch to the next; within a batch it is float32 or wider.
    Raises:
        DataError: There is no text.
        Unsupported: A layer was never run, or is given something else than one row a token.
        RunFailed: An input is not finite.
    """
    if not texts:
        raise DataError("general prompts: there are none, so nothing would be protected; give at least one text")
    device = next(model.parameters()).device
    limit = context_length(model) if hasattr(model, "config") else None
    batches = _batches(texts, TOKENS.get(device.type, DEVICE_BATCH_TOKENS), limit)
    gathered = _Gathered(torch.float64 if accumulate == "float64" else torch.float32)
    with undisturbed(model), _watched(layers, gathered), _without_logits(model):
        for (ids, mask), counts in shared_out(batches):
            gathered.begin(mask.to(device).bool() & counts)
            model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    reshard(model)
    if never := [name for name in layers if name not in gathered.owners]:
        raise Unsupported(f"the layer {never[0]!r} was not run by any of the texts; leave it out of `layers`")
    return Covariances(gathered.finished(), gathered.owners, int(sum(map(len, texts))))


def _batches(texts: Sequence[Sequence[int]], most: int, limit: int | None) -> list[tuple[Tensor, Tensor]]:
    """Texts of like length together: ``(rows, length)`` tokens padded on the right, and 1 where one stands."""
    rows = sorted((torch.tensor(list(text)) for text in texts), key=len)
    if limit is not None and len(rows[-1]) > limit:
        raise DataError(f"a general prompt has {len(rows[-1])} tokens, the model's context {limit}; lower max_tokens")
    groups: list[list[Tensor]] = [[]]
    for row in rows:
        if groups[-1] and (len(groups[-1]) + 1) * len(row) > most:
            groups.append([])
        groups[-1].append(row)
    return [
        (
            pad_sequence(group, batch_first=True),
            pad_sequence([torch.ones(len(row), dtype=torch.long) for row in group], batch_first=True),
        )
        for group in groups
    ]


@dataclass
class _Gathered:
    dtype: torch.dtype
    sums: dict[str, Tensor] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    mask: Tensor = field(default_factory=lambda: torch.zeros(0))
    seen: dict[str, weakref.ref[Tensor]] = field(default_factory=dict)  # of this batch: a freed one matches nothing

    def begin(self, mask: Tensor) -> None:
        """A new batch: ``(rows, length)``, true at the tokens that count."""
        self.mask, self.seen = mask, {}

    def take(self, name: str, inputs: Tensor) -> None:
        if name not in self.owners:
            self.owners[name] = next((owner for owner, other in self.seen.items() if other() is inputs), name)
        if self.owners[name] != name:
            return
        self.seen[name] = weakref.ref(inputs)
        if inputs.shape[:-1] not in (self.mask.shape, (self.mask.numel(),)):
            raise Unsupported(
                f"the layer {name!r} is given {tuple(inputs.shape)} and not one row a token "
                f"({tuple(self.mask.shape)}), so padding cannot be told apart; leave it out of `layers`"
            )
        rows = inputs.reshape(-1, inputs.shape[-1])
        if not bool(self.mask.all()):
            rows = rows[self.mask.reshape(-1)]
        rows = rows.to(torch.float64 if rows.dtype == torch.float64 else torch.float32)
        if name not in self.sums:
            width = rows.shape[1]
            self.sums[name] = torch.zeros(width, width, dtype=self.dtype, device=rows.device)
        add_products(self.sums[name], rows)

    def finished(self) -> dict[str, Tensor]:
        for name, half in self.sums.items():
            whole = summed(half.triu_())
            if not bool(torch.isfinite(whole.sum())):
                raise RunFailed(f"what the layer {name!r} is given is not finite on the general prompts")
            whole.add_(whole.triu(1).T)
        return self.sums


def add_products(sums: Tensor, rows: Tensor) -> None:
    """Adds rowsᵀ · rows, the upper triangle of it: by halves, which is half the work in few large products."""
    width = rows.shape[1]
    if width <= COLUMNS:
        _add_product(sums, rows, rows)
        return
    half = width // 2
    left, right = rows[:, :half], rows[:, half:]
    _add_product(sums[:half, half:], left, right)
    add_products(sums[:half, :half], left)
    add_products(sums[half:, half:], right)


def _add_product(sums: Tensor, left: Tensor, right: Tensor) -> None:
    if sums.dtype == left.dtype:
        sums.addmm_(left.T, right)
    else:
        sums.add_(left.T @ right)


@contextmanager
def _watched(layers: Mapping[str, nn.Linear], gathered: _Gathered) -> Iterator[None]:
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: gathered.take(name, args[0]))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _without_logits(model: Any) -> Iterator[None]:
    """The output layer, much of a small model's work, is given one place in place of all."""
    layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if layer is None:
        yield
        return
    handle = layer.register_forward_pre_hook(lambda _, args: (args[0][:1, :1], *args[1:]) if args else None)
    try:
        yield
    finally:
        handle.remove()
