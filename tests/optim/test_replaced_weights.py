"""Weights that somebody replaces while an optimizer keeps what they were: merging windows and masters begin anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from untaxed.callbacks import ElasticResetState
from untaxed.optim import MergeUpdate, Merging, OnDAREAdamW, Pipeline
from untaxed.sites import Host

KEEP_FEW: dict[str, Any] = {"density": 0.3, "merge_every": 4}


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 10)).to(dtype)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, state: ElasticResetState, count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        optimizer.step()
        state.step()


def share_kept(model: nn.Module, start: nn.Module) -> float:
    pairs = zip(model.parameters(), start.parameters(), strict=True)
    equal = torch.cat([torch.isclose(own, other, rtol=0, atol=1e-6).flatten() for own, other in pairs])
    return float(equal.float().mean())


def adamw(model: nn.Module) -> Any:
    return OnDAREAdamW(model.named_parameters(), lr=0.1, **KEEP_FEW)


def pipeline(model: nn.Module) -> Any:
    base = torch.optim.SGD(model.named_parameters(), lr=0.1)
    return Pipeline(base, update=MergeUpdate(Merging(**KEEP_FEW)))


def around_another(model: nn.Module) -> Any:
    return Pipeline(adamw(model), gradient=lambda gradient, entry, state: gradient)


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("build", [adamw, pipeline, around_another])
def test_a_reset_inside_a_window_is_not_undone_by_its_merge(build: Callable[..., Any], flushed: bool) -> None:
    """The merge of step 8 drops most of what was proposed since the window's first weights: those of the reset at 6."""
    model, start = network(), network()
    optimizer = build(model)
    state = ElasticResetState(model, target="initial", reset_every=6, host=Host(optimizer=optimizer))
    steps(model, optimizer, state, 7)
    assert share_kept(model, start) < 0.1  # one step from initial, everything moved
    if flushed and not isinstance(getattr(optimizer, "base", None), OnDAREAdamW):
        optimizer.flush()
    else:
        steps(model, optimizer, state, 1)
    assert share_kept(model, start) > 0.6  # 0.49 where the window began elsewhere


def test_what_is_not_reset_keeps_its_window() -> None:
    model, alone = network(), network()
    optimizers = [adamw(model), adamw(alone)]
    host = Host(optimizer=optimizers[0])
    reset = ElasticResetState(model, target="initial", reset_every=6, exclude=("0.*",), host=host)
    never = ElasticResetState(alone, target="initial", reset_every=100)
    for network_, optimizer, state in ((model, optimizers[0], reset), (alone, optimizers[1], never)):
        steps(network_, optimizer, state, 9)
    assert torch.equal(model[0].weight, alone[0].weight)
    assert not torch.equal(model[1].weight, alone[1].weight)


def test_a_master_follows_a_reset() -> None:
    model, start = network(torch.bfloat16), network(torch.bfloat16)
    optimizer = OnDAREAdamW(model.named_parameters(), lr=1e-6, density=0.5, master="float32")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    state = ElasticResetState(model, target="initial", reset_every=3, host=Host(optimizer=optimizer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    steps(model, optimizer, state, 4)
    for own, other in zip(model.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(own, 2 * other, rtol=1e-2, atol=1e-4)
