from __future__ import annotations

import pytest
import torch
from torch import nn

from untaxed.weights import check_same, copy_into, same, snapshot, swapped


class Tied(nn.Module):
    """An embedding that is also the head, a norm, a frozen part and a buffer: what a language model has."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.norm = nn.LayerNorm(3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("count", torch.tensor(7))


def other(module: nn.Module) -> dict[str, torch.Tensor]:
    """New values under the module's own names, a tied tensor once."""
    values = {name: torch.randn_like(value) for name, value in module.named_parameters()}
    return {**values, "count": torch.tensor(8)}


def test_check_same_names_every_fault_with_the_nearest_name() -> None:
    first = {"model.norm.weight": torch.zeros(2), "a": torch.zeros(3), "b": torch.zeros(1)}
    second = {"model.norn.weight": torch.zeros(2), "a": torch.zeros(4), "b": torch.zeros(1)}
    with pytest.raises(ValueError, match="do not fit") as caught:
        check_same(first, second)
    text = str(caught.value)
    assert "'model.norm.weight' is missing from aligned (did you mean 'model.norn.weight'?)" in text
    assert "'model.norn.weight' is missing from initial" in text
    assert "'a' has shape (3,) in initial and (4,) in aligned" in text
    assert "'b'" not in text.replace("'model", "")


def test_snapshot_is_a_float32_copy_of_what_is_trained() -> None:
    module = Tied().to(torch.bfloat16)
    taken = snapshot(module)
    assert set(taken) == {"embed.weight", "norm.weight", "norm.bias"}
    assert {value.dtype for value in taken.values()} == {torch.float32}
    taken["norm.weight"].zero_()
    assert module.norm.weight.sum() == 3


def test_copy_into_keeps_the_objects_and_writes_tied_weights_once() -> None:
    module = Tied()
    objects = dict(module.named_parameters())
    values = other(module)
    copy_into(module, values)
    assert all(objects[name] is parameter for name, parameter in module.named_parameters())
    assert torch.equal(module.head.weight, values["embed.weight"])
    assert module.head.weight is module.embed.weight
    assert module.count == 8


def test_copy_into_takes_either_name_of_tied_weights_and_refuses_two_values() -> None:
    module = Tied()
    values = other(module)
    values["head.weight"] = values.pop("embed.weight")
    copy_into(module, values)
    assert torch.equal(module.embed.weight, values["head.weight"])
    with pytest.raises(ValueError, match=r"'embed\.weight' and 'head\.weight' are tied"):
        copy_into(module, {**values, "embed.weight": values["head.weight"] + 1})


def test_copy_into_refuses_part_of_the_weights_and_foreign_ones() -> None:
    module = Tied()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match="is missing from the weights"):
        copy_into(module, {"norm.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"'nrm\.weight' is missing from the module \(did you mean 'norm\.weight'\?\)"):
        copy_into(module, {("nrm.weight" if name == "norm.weight" else name): t for name, t in other(module).items()})
    assert same(module.state_dict(), before)


def test_swapped_gives_the_weights_back_also_when_the_block_raises() -> None:
    module = Tied()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    values = other(module)
    with swapped(module, values) as lent:
        assert torch.equal(lent.norm.weight, values["norm.weight"])
    assert same(module.state_dict(), before)
    with pytest.raises(KeyError), swapped(module, values):
        raise KeyError
    assert same(module.state_dict(), before)
    with pytest.raises(ValueError, match="do not fit"), swapped(module, {"norm.weight": torch.zeros(4)}):
        pass
    assert same(module.state_dict(), before)
