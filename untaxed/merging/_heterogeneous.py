"""Heterogeneous averaging: every block of layers moves back to initial by a share of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import Unsupported, UsageError
from ..sites import Weights
from ..weights import address, check_same
from ._average import _average_one
from ._partition import Partition
from ._whole import check_whole

DIRECT = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@torch.no_grad()
def heterogeneous_average(
    initial: Weights,
    aligned: Weights,
    ratios: Mapping[str, float],
    partition: Partition,
    *,
    rest_share: float | None = None,
) -> dict[str, Tensor]:
    r"""Moves every block of aligned weights back to the initial ones by its own share.

    .. math:: \theta^{[k]} = s_k\,\theta^{[k]}_{initial} + (1 - s_k)\,\theta^{[k]}_{aligned}

    Args:
        initial: Weights before alignment, name -> tensor of any shape.
        aligned: Weights after alignment: the same names and shapes.
        ratios: :math:`s_k` in [0, 1] by the name of the block.
        partition: Which tensor belongs to which block, and what the others get (`partition`).
        rest_share: The share of tensors under the policy ``mean``; None: the ratios' mean.
    Returns:
        New tensors with ``aligned``'s names, dtypes and devices; like `average` with every tensor's own share. Equal
        ratios under `AS_AVERAGE` give `average` bit for bit.
    Raises:
        UsageError: Ratios and blocks do not fit, or the partition does not know a tensor. `Unsupported`: The tensors
            are an adapter's.
        ValueError: Names or shapes differ.
    Example:
        >>> from untaxed.merging import partition
        >>> initial = {f"h.{n}.weight": torch.zeros(1, 1) for n in range(2)}
        >>> aligned = {f"h.{n}.weight": torch.ones(1, 1) for n in range(2)}
        >>> cut = partition(initial, 2)
        >>> merged = heterogeneous_average(initial, aligned, {"layer 0": 0.4, "layer 1": 0.0}, cut)
        >>> [round(tensor.item(), 2) for tensor in merged.values()]
        [0.6, 1.0]

    Source: Lin et al. 2024, arXiv:2309.06256, section 6.
    Differs: the paper's text gives the ratios to aligned, its code, as we, to initial; computed in float32, cast once.
    """
    check_whole(initial, aligned)
    check_same(initial, aligned)
    shares = partition.shares(ratios, rest_share=rest_share)
    return {name: _average_one(initial[name], end, _share(shares, name)) for name, end in aligned.items()}


def _share(shares: Mapping[str, float], *names: str) -> float:
    for name in names:
        if name in shares:
            return shares[name]
    raise UsageError(f"the partition has no tensor {names[0]!r}; make it from the weights that are averaged")


@dataclass
class Place:
    """One tensor of a model and the two that it is written from.

    Attributes:
        names: The model's, tied ones too.
        direct: Whether torch's lerp into the target is the average: all three alike, and nothing in `aligned` that lerp
            would not keep where `initial` is equal (infinities, of which it makes NaN, and -0, of which it makes 0).
        written: The share that lies in the target.
    """

    names: tuple[str, ...]
    target: Tensor
    initial: Tensor
    aligned: Tensor
    direct: bool
    written: float | None = field(default=None)


@dataclass
class Blend:
    """A model whose weights are written, in place, as the average for whatever ratios are asked."""

    model: nn.Module
    partition: Partition
    places: list[Place]

    @torch.no_grad()
    def write(self, ratios: Mapping[str, float], *, rest_share: float | None = None) -> None:
        """Writes the average for these ratios: one pass over the tensors whose share is another than before."""
        shares = self.partition.shares(ratios, rest_share=rest_share)
        for place in self.places:
            share = _share(shares, *place.names)
            if share != place.written:
                _write_one(place, share)
                place.written = share


def _write_one(place: Place, share: float) -> None:
    """`_average_one` into its place; where nothing is moved, without a tensor in between.

    torch computes halves' lerp in float32 and rounds once, as `_average_one` does; a test holds both to the same bits.
    """
    if place.direct and 0 < share < 1:
        torch.lerp(place.aligned, place.initial, share, out=place.target)
    else:
        place.target.copy_(_average_one(place.initial, place.aligned, share))


@contextmanager
def blended(model: nn.Module, initial: Weights, aligned: Weights, partition: Partition) -> Iterator[Blend]:
    """Lends a model the averages of two sets of weights, one after another, and gives its own back bit for bit.

    A candidate costs a pass over memory, no loading and no new tensors of the model's size. Beside the model and the
    two sets a third is held, the model's own weights, unless those are `aligned` or `initial` already.

    Args:
        model: Any module; wrapped in DDP, the one inside.
        initial: By the model's names every parameter, and buffers where they differ; of tied names one suffices.
        aligned: The same.
        partition: Of this model.
    Raises:
        UsageError: A parameter is missing from the weights or from the partition, or a name is not the model's.
        Unsupported: The model is sharded over processes, or has an adapter.
    """
    model = unwrapped(model)
    check_whole(model.state_dict(), initial, aligned)
    check_same(initial, aligned)
    places, own = _places(model, initial, aligned)
    for place in places:
        _share(partition.shares(partition.equal(0.0)), *place.names)
    try:
        yield Blend(model, partition, places)
    finally:
        with torch.no_grad():
            for place, tensor in zip(places, own):
                place.target.copy_(tensor)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module within DistributedDataParallel, whose own synchronisation nothing here needs."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _places(model: nn.Module, initial: Weights, aligned: Weights) -> tuple[list[Place], list[Tensor]]:
    targets = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    if any(hasattr(target, "to_local") for target in targets.values()):
        raise Unsupported("the model is sharded (FSDP2); load it whole in every process, or wrap it in DDP")
    for name in aligned:
        if name not in targets:
            raise UsageError(f"the model has no tensor {name!r}")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    places, own = [], []
    for names in _tied(targets):
        target, given = targets[names[0]], next((name for name in names if name in aligned), None)
        if given is None:
            if names[0] in parameters:
                raise UsageError(f"{names[0]!r} is missing from the weights")
            continue  # a buffer that is nobody's difference stays the model's
        ends = initial[given], aligned[given]
        if ends[1].shape != target.shape:
            raise UsageError(f"{given!r} has shape {tuple(ends[1].shape)}, and {tuple(target.shape)} in the model")
        kept = next((end for end in reversed(ends) if _same_elsewhere(end, target)), None)
        own.append(target.clone() if kept is None else kept)
        # what is the model's own memory would be overwritten with the first average
        first, last = (own[-1] if address(end) == address(target) else end for end in ends)
        places.append(Place(names, target, first, last, _direct(target, first, last)))
    return places, own


def _direct(target: Tensor, initial: Tensor, aligned: Tensor) -> bool:
    alike = all((end.dtype, end.device) == (target.dtype, target.device) for end in (initial, aligned))
    if not alike or target.dtype not in DIRECT:
        return False
    return not bool((aligned.isinf() | ((aligned == 0) & aligned.signbit())).any())


def _tied(targets: Mapping[str, Tensor]) -> Sequence[tuple[str, ...]]:
    groups: dict[object, tuple[str, ...]] = {}
    for name, tensor in targets.items():
        groups[address(tensor)] = (*groups.get(address(tensor), ()), name)
    return list(groups.values())


def _same_elsewhere(tensor: Tensor, target: Tensor) -> bool:
    """Whether a tensor holds the target's very values in memory of its own."""
    alike = tensor.dtype == target.dtype and tensor.device == target.device
    return alike and address(tensor) != address(target) and bool(torch.equal(tensor, target))
