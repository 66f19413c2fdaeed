"""The layer whose gradient is born projected equals projecting the gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from untaxed.projections import Subspace, project_activations, projected_linear, protected_subspace


def subspace(width: int = 6, rank: int = 2, dtype: torch.dtype = torch.float32) -> Subspace:
    torch.manual_seed(1)
    rows = torch.randn(50, width, dtype=dtype)
    return protected_subspace(rows.T @ rows, threshold="rank", value=rank)


@pytest.mark.parametrize("rank", [2, 5])
@pytest.mark.parametrize("tokens", [2, 40])  # fewer than the outputs, and more: the factors' two orders
@pytest.mark.parametrize("bias", [True, False])
def test_the_gradient_is_the_projected_one_and_the_rest_is_as_ever(rank: int, tokens: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer, sub = nn.Linear(6, 8, bias=bias), subspace(rank=rank)
    twin = copy.deepcopy(layer)
    x, y = (torch.randn(1, tokens, 6, generator=torch.Generator().manual_seed(2), requires_grad=True) for _ in range(2))
    project_activations(nn.Sequential(layer), {"0": sub})
    ours, plain = layer(x), twin(y)
    assert torch.equal(ours, plain)
    ours.pow(3).sum().backward()
    plain.pow(3).sum().backward()
    torch.testing.assert_close(layer.weight.grad, sub.remove(twin.weight.grad), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, y.grad)
    if bias:
        torch.testing.assert_close(layer.bias.grad, twin.bias.grad)


def test_gradients_agree_with_finite_differences_of_the_free_part() -> None:
    sub = subspace(4, 3, torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: projected_linear(x, w, None, sub), (x,))


def test_sgd_moves_no_output_on_protected_inputs_over_micro_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    sub = subspace()
    undo = project_activations(model, {"0": sub})
    before = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        for _ in range(2):
            model(torch.randn(4, 6)).square().sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    moved = model[0].weight.detach() - before
    assert moved.norm() > 1e-2
    assert (moved @ sub.basis).norm() < 1e-6
    undo()
    model(torch.randn(4, 6)).sum().backward()
    assert (model[0].weight.grad @ sub.basis).norm() > 1e-3


@pytest.mark.parametrize("tokens", [4, 40])  # fewer than the outputs, and more
def test_under_autocast_and_checkpointing_it_is_the_same(tokens: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8))
    twin = copy.deepcopy(model)
    sub = subspace()
    project_activations(model, {"0": sub})
    x = torch.randn(tokens, 6)
    for each in (model, twin):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = torch.utils.checkpoint.checkpoint(each, x, use_reentrant=False)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
    torch.testing.assert_close(model[0].weight.grad, sub.remove(twin[0].weight.grad), rtol=2e-2, atol=0.5)
    assert model[0].weight.grad.dtype == torch.float32
    assert (model[0].weight.grad @ sub.basis).norm() < 1e-6 * (twin[0].weight.grad @ sub.basis).norm()


def test_layers_that_cannot_be_are_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
    for name, message in (("1", "the layer '1' is no nn.Linear"), ("2", "the layer '2' is no nn.Linear")):
        with pytest.raises(ValueError, match=message):
            project_activations(model, {"0": subspace(), name: subspace()})
    project_activations(model, {"0": subspace()})
    with pytest.raises(ValueError, match="the layer '0' is projected already"):
        project_activations(model, {"0": subspace()})
