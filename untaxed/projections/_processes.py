"""The processes of a training: which part of the work is this one's, and sums over all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor


def processes() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def shared_out(batches: Sequence[Any]) -> list[tuple[Any, bool]]:
    """This process's batches, as many as every other's: FSDP2 gathers weights in each forward pass, so all must take
    part. The second says whether a batch counts; one that fills up does not."""
    rank, world = processes()
    count = -(-len(batches) // world)
    numbers = [rank + world * turn for turn in range(count)]
    return [(batches[number if number < len(batches) else 0], number < len(batches)) for number in numbers]


def summed(value: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if processes()[1] > 1:
        dist.all_reduce(value)
    return value
