"""The derivative of a loss by the ratios of blocks, exact, and held in K numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import DataError, UntaxedError, UsageError
from ..sites import Weights
from ._heterogeneous import Blend, Place, blended, unwrapped
from ._partition import Partition
from ._samples import Scope, Tokens, token_nll
from ._simplex import Array

Loss = Callable[[nn.Module, Tokens], tuple[Tensor, int]]


def ratio_gradient(
    model: nn.Module,
    initial: Weights,
    aligned: Weights,
    partition: Partition,
    batch: Tokens,
    ratios: Mapping[str, float],
    *,
    rest_share: float | None = None,
    scope: Scope = "response",
    loss: Loss | None = None,
    rows_at_once: int | None = None,
) -> tuple[float, dict[str, float]]:
    """The mean loss of an average and its derivative by every block's ratio: where moving back costs most.

    Args and raises as `learn_ratios`; where ``rest_share`` is None, tensors under the policy ``mean`` move with the
    ratios' mean, and the derivative says so.
    """
    score = loss or (lambda module, tokens: token_nll(module, tokens, scope))
    with measured(model, initial, aligned, partition, score, rest_share, rows_at_once) as measure:
        value, gradient = measure(np.array(partition.ordered(ratios)), batch, where="the batch")
    return value, partition.named(gradient)


@dataclass
class Sums:
    """Loss and gradient sums over the tokens of a batch, by block; the last entry is that of the policy ``mean``."""

    gradient: Tensor  # (K + 1,) float64
    loss: float = 0.0
    count: int = 0


class Measure:
    """Loss and gradient at given ratios; one for all steps, so that only what changes is written."""

    def __init__(self, blend: Blend, score: Loss, rest_share: float | None, rows_at_once: int | None) -> None:
        self.blend, self.score, self.rest_share, self.rows_at_once = blend, score, rest_share, rows_at_once
        self.device = blend.places[0].target.device
        self.sums = Sums(torch.zeros(len(blend.partition.blocks) + 1, dtype=torch.float64, device=self.device))

    def __call__(self, ratios: Array, batch: Tokens, *, where: str, gradient: bool = True) -> tuple[float, Array]:
        partition = self.blend.partition
        self.blend.write(partition.named(ratios), rest_share=self.rest_share)
        self.sums.gradient.zero_()
        self.sums.loss, self.sums.count = 0.0, 0
        rank, world = (dist.get_rank(), dist.get_world_size()) if _several() else (0, 1)
        own = batch.rows(rank, None, world)
        at_once = self.rows_at_once or max(1, len(own))
        for begin in range(0, len(own), at_once):
            self._add(own.rows(begin, begin + at_once).to(self.device), gradient)
        loss, slopes = self._mean(where)
        blocks = len(partition.blocks)
        by_block = slopes[:blocks]
        if self.rest_share is None:
            w = np.array(partition.weights)
            by_block = by_block + slopes[blocks] * w / w.sum()
        return loss, by_block

    def _add(self, batch: Tokens, gradient: bool) -> None:
        with torch.set_grad_enabled(gradient):
            total, count = self.score(self.blend.model, batch)
        if gradient and total.requires_grad:
            total.backward()
        self.sums.loss += float(total.detach())
        self.sums.count += int(count)

    def _mean(self, where: str) -> tuple[float, Array]:
        numbers = torch.tensor([self.sums.loss, self.sums.count], dtype=torch.float64, device=self.device)
        sums = torch.cat([numbers, self.sums.gradient])
        if _several():
            dist.all_reduce(sums)
        loss, count, *slopes = sums.tolist()
        if not count:
            raise DataError(f"{where}: no token counts; are the response masks empty?")
        if not all(map(math.isfinite, (loss, *slopes))):
            raise UntaxedError(f"{where}: the loss or its gradient is not finite ({loss / count})")
        return loss / count, np.array(slopes) / count


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def measured(
    model: nn.Module,
    initial: Weights,
    aligned: Weights,
    partition: Partition,
    score: Loss,
    rest_share: float | None,
    rows_at_once: int | None,
) -> Iterator[Measure]:
    """Lends the model: in eval mode, with gradients where a ratio acts; gives back all that it was."""
    if rows_at_once is not None and rows_at_once < 1:
        raise UsageError(f"rows_at_once must be at least 1, got {rows_at_once}")
    module = unwrapped(model)
    modes = {part: part.training for part in module.modules()}
    pads = {part: part.padding_idx for part in module.modules() if isinstance(part, nn.Embedding)}
    with ExitStack() as stack:
        blend = stack.enter_context(blended(module, initial, aligned, partition))
        measure = Measure(blend, score, rest_share, rows_at_once)
        stack.enter_context(_gradients(module, blend, measure.sums, mean_moves=rest_share is None))
        module.eval()
        for (
            embedding
        ) in pads:  # the padding token's row would get no gradient, also where the token is read as a text's
            embedding.padding_idx = None
        try:
            yield measure
        finally:
            for part, training in modes.items():
                part.training = training
            for embedding, index in pads.items():
                embedding.padding_idx = index


@contextmanager
def _gradients(module: nn.Module, blend: Blend, sums: Sums, *, mean_moves: bool) -> Iterator[None]:
    """Every gradient becomes its inner product with the delta as soon as it is there, and is gone."""
    entries = _entries(blend.partition, mean_moves)
    places = {name: place for place in blend.places for name in place.names}
    before = {parameter: (parameter.requires_grad, parameter.grad) for parameter in module.parameters()}
    handles = []
    for name, parameter in module.named_parameters():
        place = places[name]
        entry = next((entries[other] for other in place.names if other in entries), None)
        parameter.grad = None
        parameter.requires_grad_(entry is not None and parameter.is_floating_point())
        if entry is not None and parameter.is_floating_point():
            handles.append(parameter.register_post_accumulate_grad_hook(_adder(place, entry, sums)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, (required, gradient) in before.items():
            parameter.requires_grad_(required)
            parameter.grad = gradient


def _entries(partition: Partition, mean_moves: bool) -> dict[str, int]:
    """Which sum a tensor's inner product goes to; tensors that no ratio moves are left out."""
    entries = {name: number for number, block in enumerate(partition.blocks) for name in block.tensors}
    if not mean_moves:
        return entries
    mean = [name for role, names in partition.rest.items() if partition.policies[role] == "mean" for name in names]
    return entries | {name: len(partition.blocks) for name in mean}


def _adder(place: Place, entry: int, sums: Sums) -> Callable[[Tensor], None]:
    @torch.no_grad()
    def add(parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        parameter.grad = None
        wide = torch.promote_types(gradient.dtype, torch.float32)
        delta = place.initial.to(gradient.device, wide) - place.aligned.to(gradient.device, wide)
        sums.gradient[entry] += delta.mul_(gradient).sum(dtype=torch.float64)

    return add
