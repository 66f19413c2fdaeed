"""One of two processes of `test_sharded_merging.py`: `python merging_worker.py FOLDER`, in torch's usual environment.

The same gradients are given to a whole model and to one that `fully_shard` cut by rows: 5 rows are 3 and 2, 1 row is 1
and 0. The results must agree to the bit.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from untaxed.errors import Unsupported
from untaxed.optim import MaskGradient, MergeUpdate, Merging, OnDAREAdamW, Pipeline

RULES = {
    "random": Merging(0.4, 0.1),
    "random, K = 3": Merging(0.4, 0.1, 3, delta_mask="once"),
    "magnitude": Merging(0.3, 0.1, sparsify="magnitude", consensus="sign"),
    "momentum": Merging(0.3, 0.1, 2, sparsify="momentum"),
    "anchor": Merging(0.5, 0.1, pull="anchor", anchor_at=0.5, rescale="inverse"),
    "ties": Merging(0.01, 0.1, sparsify="magnitude"),
}


class Model(nn.Module):
    """Uneven shards, a single row, more than one block of the counter."""

    def __init__(self) -> None:
        super().__init__()
        self.uneven = nn.Linear(4, 5)
        self.one = nn.Linear(5, 1)
        self.large = nn.Linear(101, 99)


def built(
    merging: Merging, *, sharded: bool, direction: str = "delta", fast: bool = False, rounding: str = "nearest"
) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    module = Model()
    generator = torch.Generator().manual_seed(1)
    delta = {name: torch.randn(p.shape, generator=generator) for name, p in module.named_parameters()}
    if sharded:
        fully_shard(module)
    if fast:
        settings = dataclasses.asdict(merging)
        named = module.named_parameters()
        return module, OnDAREAdamW(named, lr=0.05, delta=delta, rounding=rounding, nonfinite="skip", **settings)
    optimizer = Pipeline(
        torch.optim.AdamW(module.named_parameters(), lr=0.05, foreach=False),
        gradient=MaskGradient(0.8),
        update=MergeUpdate(merging, delta, direction=direction),
        displacement=lambda displacement, entry, state: displacement * 1.0,
        rounding="stochastic",
        nonfinite="skip",
    )
    return module, optimizer


def step(module: nn.Module, optimizer: Pipeline, number: int, *, ties: bool = False, bad: bool = False) -> None:
    generator = torch.Generator().manual_seed(number)
    for p in module.parameters():
        gradient = torch.randn(p.shape, generator=generator)
        gradient = gradient.sign() if ties else gradient
        if bad:
            gradient.view(-1)[0] = torch.nan  # in the shard of the first process only
        p.grad = distribute_tensor(gradient, p.device_mesh, p.placements) if isinstance(p, DTensor) else gradient
    optimizer.step()


def whole(module: nn.Module) -> dict[str, torch.Tensor]:
    """Full tensors by name; every process must call it."""
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in module.named_parameters()
    }


def check_equal(alone: nn.Module, sharded: nn.Module, what: str) -> None:
    for name, tensor in whole(sharded).items():
        assert torch.equal(tensor, dict(alone.named_parameters())[name].detach()), f"{name} differs: {what}"


def follow(label: str, merging: Merging, direction: str = "delta", **how: Any) -> None:
    """Seven steps, one of them skipped by both processes for a gradient that one of them has."""
    pairs = [built(merging, sharded=sharded, direction=direction, **how) for sharded in (False, True)]
    for number in range(1, 9):
        for module, optimizer in pairs:
            step(module, optimizer, number, ties=label == "ties", bad=number == 4)
        check_equal(pairs[0][0], pairs[1][0], f"{label}, {direction}, {how}, step {number}")
    assert [optimizer.skipped for _, optimizer in pairs] == [1, 1]
    for _, optimizer in pairs:
        optimizer.flush()
    check_equal(pairs[0][0], pairs[1][0], f"{label}, {direction}, flushed")


def saved_and_resumed(folder: Path, fast: bool) -> None:
    """Saved by shards in the middle of a cycle, taken up by other shards and by a whole model."""
    merging = RULES["random, K = 3"]
    module, optimizer = built(merging, sharded=True, fast=fast)
    for number in range(1, 6):
        step(module, optimizer, number)
    optimizer.zero_grad()
    state = get_optimizer_state_dict(module, optimizer)
    kept = state["state"]["uneven.weight"]
    at_merge = kept["at_merge"] if fast else kept["pipeline"]["update.0"]["at_merge"]
    assert isinstance(at_merge, DTensor)
    assert at_merge.shape == (5, 4)
    checkpoint.save({"optimizer": state}, checkpoint_id=folder / "sharded")
    fresh, resumed = built(merging, sharded=True, fast=fast)
    for name, p in fresh.named_parameters():
        p.data.copy_(dict(module.named_parameters())[name].data)
    template = copy.deepcopy(state)
    checkpoint.load({"optimizer": template}, checkpoint_id=folder / "sharded")
    set_optimizer_state_dict(fresh, resumed, template)
    alone, whole_one = built(merging, sharded=False, fast=fast)
    for name, p in alone.named_parameters():
        p.data.copy_(whole(module)[name])
    whole_one.load_state_dict(full_state(optimizer.state_dict()))
    for number in range(6, 12):
        for each in ((module, optimizer), (fresh, resumed), (alone, whole_one)):
            step(*each, number)
        check_equal(alone, module, f"resumed whole, step {number}")
        check_equal(alone, fresh, f"resumed in shards, step {number}")


def full_state(value: Any) -> Any:
    """A saved state with whole tensors; every process must call it."""
    if isinstance(value, dict):
        return {key: full_state(one) for key, one in value.items()}
    if isinstance(value, list):
        return [full_state(one) for one in value]
    return value.full_tensor() if isinstance(value, DTensor) else copy.deepcopy(value)


def refused() -> None:
    """Columns cannot be merged, and the message says so."""
    module, _ = built(RULES["random"], sharded=True)
    mesh = module.uneven.weight.device_mesh
    columns = nn.Parameter(distribute_tensor(torch.randn(4, 6), mesh, [Shard(1)]))
    optimizer = Pipeline(torch.optim.SGD([("w", columns)], lr=0.1), update=MergeUpdate(Merging(0.5)))
    columns.grad = distribute_tensor(torch.randn(4, 6), mesh, [Shard(1)])
    with pytest.raises(Unsupported, match="'w' is sharded as"):
        optimizer.step()


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for label, merging in RULES.items():
        follow(label, merging)
        follow(label, merging, fast=True)
    follow("magnitude", RULES["magnitude"], "random")
    follow("random", RULES["random"], fast=True, rounding="stochastic")
    for fast in (False, True):
        saved_and_resumed(Path(sys.argv[1]) / str(fast), fast)
    refused()
    dist.destroy_process_group()
