"""Where the local part of a sharded parameter lies in the whole, and how the parts count together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import Unsupported
from ..weights import local, sharded
from ._merge import Place
from ._sides import plain_name


@dataclass(frozen=True)
class SumOver:
    """Sums a tensor over the processes of a group, which must all call; equal for equal groups."""

    group: Any

    def __call__(self, counts: Tensor) -> Tensor:
        total = counts.clone()
        dist.all_reduce(total, group=self.group)
        return total


def place_of(name: str, parameter: Tensor) -> Place:
    """Which part of a parameter this process holds: all of it, or its rows under FSDP2 (`Shard(0)`, uneven ones too).

    The name loses what wrappers put into it, so that masks do not depend on them.

    Raises:
        Unsupported: It is sharded in another way.
    """
    name = plain_name(name)
    if not sharded(parameter):
        return Place(name)
    from torch.distributed.tensor import DTensor, Shard

    assert isinstance(parameter, DTensor)
    dims = [dim for dim, placement in enumerate(parameter.placements) if not placement.is_replicate()]
    if not dims:
        return Place(name)
    only = parameter.placements[dims[0]]
    if len(dims) > 1 or type(only) is not Shard or only.dim != 0:  # a subclass orders its rows otherwise
        raise Unsupported(
            f"{name!r} is sharded as {tuple(parameter.placements)}: only whole tensors and rows over one mesh "
            "dimension (Shard(0), what fully_shard makes) can be merged; train without tensor parallelism"
        )
    mesh, dim = parameter.device_mesh, dims[0]
    start, stop = _rows(parameter.shape[0], mesh.size(dim), mesh.get_local_rank(dim))
    assert local(parameter).shape[0] == stop - start, f"{name}: the shard is not the one that Shard(0) makes"
    row = math.prod(parameter.shape[1:])
    return Place(name, offset=start * row, total=parameter.numel(), reduce=SumOver(mesh.get_group(dim)))


def as_placed(value: Any, parameter: Tensor) -> Any:
    """A tensor of a sharded parameter's local shape as a DTensor, so that saving sees the whole; else itself."""
    if not sharded(parameter) or not isinstance(value, Tensor) or value.shape != local(parameter).shape:
        return value
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    return DTensor.from_local(
        value,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def local_part(value: Any, parameter: Tensor) -> Any:
    """The inverse of `as_placed`, of a whole tensor too; a copy on the parameter's device. Not a tensor: itself."""
    if not isinstance(value, Tensor):
        return value
    part = local(value)
    if sharded(parameter) and part is value and value.shape == parameter.shape:
        place = place_of("", parameter)
        rows = local(parameter).shape[0]
        first = place.offset // max(1, math.prod(parameter.shape[1:]))
        part = value[first : first + rows] if place.total is not None else value
    return part.to(parameter.device, copy=True)


def any_true(flags: Sequence[Tensor], places: Sequence[Place]) -> list[bool]:
    """Of one flag a parameter: whether it is set in any process that holds a part; one exchange a group."""
    answers = [False] * len(flags)
    for reduce in dict.fromkeys(place.reduce for place in places):
        chosen = [index for index, place in enumerate(places) if place.reduce == reduce]
        counts = torch.stack([flags[index].long().to(flags[chosen[0]].device) for index in chosen])
        for index, count in zip(chosen, (reduce(counts) if reduce else counts).tolist()):
            answers[index] = count > 0
    return answers


def _rows(rows: int, parts: int, part: int) -> tuple[int, int]:
    """The rows that `Shard(0)` gives to one of the parts, as `torch.chunk` cuts them."""
    size = -(-rows // parts)
    return min(part * size, rows), min((part + 1) * size, rows)
