"""One of two processes of `test_sharded.py`: what follows sharded weights while forward passes gather them.

FSDP2 keeps the outermost weights whole after a forward pass that no backward pass follows. Each law holds a model that
is looked at between its steps against a whole one, or against one that nobody looks at, to the bit.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from sharded_worker import trainer, whole
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from untaxed.callbacks import (
    EMA,
    BEMAState,
    ElasticReset,
    ElasticResetState,
    SyncReferenceState,
    WeightAverage,
)
from untaxed.method import Method
from untaxed.sites import Host
from untaxed.training import Moment, attach, train
from untaxed.weights import reshard, same, trainable

BATCH = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def full(model: nn.Module) -> dict[str, torch.Tensor]:
    reshard(model)
    return whole(model)


def pair() -> tuple[nn.Module, nn.Module]:
    """A whole model and its sharded twin."""
    torch.manual_seed(0)
    alone = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return alone, fully_shard(copy.deepcopy(alone))


def look(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(BATCH)


def steps(model: nn.Module, target: Callable[[], Any], step: Callable[[], Any], count: int = 5) -> None:
    """Trains; `target` is asked before each loss, `step` after each optimizer step and a look at the model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(count):
        optimizer.zero_grad()
        (model(BATCH) - target()).square().mean().backward()
        optimizer.step()
        look(model)
        step()


def an_average_is_swapped_in_for_a_look() -> None:
    seen = []
    for model in pair():
        look(model)
        average = WeightAverage(model, decay=0.9)
        steps(model, lambda: 0.0, average.step)
        own, before = full(model), look(model)
        with average.swapped_in(model):
            inside = look(model)
        assert torch.equal(look(model), before)
        assert same(full(model), own)
        assert not torch.equal(inside, before)
        seen.append((own, {"before": before, "inside": inside}))
    assert same(seen[0][0], seen[1][0])
    assert same(seen[0][1], seen[1][1])


def a_model_is_looked_at_before_its_resets() -> None:
    finals = []
    for model in pair():
        reset = ElasticResetState(model, decay=0.9, reset_every=2)
        bema = BEMAState(model, update_every=2, lag=0)
        steps(model, lambda: 0.0, lambda: (reset.step(), bema.step()))  # noqa: B023
        look(model)
        assert {name: t.shape for name, t in bema.variant().items()} == {
            n: t.shape for n, t in trainable(model).items()
        }
        finals.append(full(model))
    assert same(*finals)


def references_are_used_between_their_moves() -> None:
    finals = []
    for model, anchor, shown in zip(pair(), pair(), pair(), strict=True):
        sync = SyncReferenceState(model, anchor, share=0.6, sync_every=2)
        host = Host(reference=lambda: trainable(shown))  # noqa: B023
        reset = ElasticResetState(model, decay=0.9, reset_every=3, reference="average", host=host)
        steps(model, lambda: look(anchor) + look(shown), lambda: (sync.step(), reset.step()))  # noqa: B023
        finals.append({f"{n}/{k}": t for n, m in enumerate((model, anchor, shown)) for k, t in full(m).items()})
    assert same(*finals)


def observing_changes_nothing(initial: Path, folder: Path) -> None:
    def look_at(moment: Moment) -> None:
        with torch.no_grad():
            moment.model(torch.tensor([[3, 4, 5]]))

    for method in (EMA(decay=0.5), ElasticReset(decay=0.5, reset_every=2)):
        finals = []
        for observe in (None, look_at):
            ours = trainer(initial, folder, "fsdp2")
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # seeding reads it again
            train(ours, attach(ours, method), every=1, observe=observe)
            assert any(isinstance(parameter, DTensor) for parameter in ours.model.parameters())
            finals.append(full(ours.model))
        assert same(*finals), method.name


def an_evaluation_between(initial: Path, folder: Path, method: Method) -> None:
    ours = trainer(initial, folder, "fsdp2")
    attached = attach(ours, method)
    ours.train()
    own = full(ours.model)
    rows = Dataset.from_list([dict(row) for row in ours.train_dataset[:8]])

    def loss() -> float:
        return ours.evaluate(eval_dataset=rows)["eval_loss"]

    before = loss()
    with attached.shown():
        shown = loss()
    assert loss() == before != shown
    assert same(full(ours.model), own)


if __name__ == "__main__":
    torch.set_num_threads(1)
    start, place = Path(sys.argv[1]), Path(sys.argv[2])
    observing_changes_nothing(start, place)
    an_evaluation_between(start, place, EMA(decay=0.5))
    an_average_is_swapped_in_for_a_look()
    a_model_is_looked_at_before_its_resets()
    references_are_used_between_their_moves()
    dist.destroy_process_group()
