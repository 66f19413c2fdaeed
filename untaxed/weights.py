"""Algebra on named tensors: compare, copy, swap. Knows no trainer and no file.

A tensor that is sharded over processes (a DTensor) is handled through its local shard, so nothing here communicates.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .errors import meant
from .sites import Weights

ORDINARY = (Tensor, nn.Parameter)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies in this process: its shard, or the tensor itself."""
    return tensor.to_local() if sharded(tensor) else tensor  # type: ignore[attr-defined]


def sharded(tensor: Tensor) -> bool:
    """True for a DTensor."""
    # by type first: looking for what is not there takes longer than all else of an optimizer's step on a small tensor
    return type(tensor) not in ORDINARY and hasattr(tensor, "to_local")


def trainable(module: nn.Module) -> dict[str, Tensor]:
    """The local part of every trainable parameter by its full name; tied parameters once.

    Asked anew at every use: FSDP2 replaces parameter objects, so identity is the name.
    """
    reshard(module)
    return {name: local(parameter.detach()) for name, parameter in module.named_parameters() if parameter.requires_grad}


def reshard(module: nn.Module) -> None:
    """Lets go of the weights that FSDP2 keeps gathered after a forward pass that no backward pass follows.

    Until then the outermost parameters are whole tensors in place of shards, and what is written into the shards does
    not reach the next forward pass.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # where nobody imported it nothing is sharded
    if fsdp is None:
        return
    for part in module.modules():
        if isinstance(part, fsdp.FSDPModule):
            part.reshard()


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision in which weights of a dtype are averaged: float64 of float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the trainable parameters (local shards) in float32 or wider, for averages that must not lose small
    updates."""
    return {name: tensor.to(wide(tensor.dtype), copy=True) for name, tensor in trainable(module).items()}


def check_same(first: Weights, second: Weights, *, names: tuple[str, str] = ("initial", "aligned")) -> None:
    """Raises `ValueError` that lists every name or shape in which two sets of weights differ.

    Args:
        first: Weights, name -> tensor.
        second: Weights that must have the same names and shapes.
        names: What the two are called in the message.
    """
    only_first, only_second = ([name for name in a if name not in b] for a, b in ((first, second), (second, first)))
    faults = [f"{name!r} is missing from {names[1]}{meant(name, only_second)}" for name in only_first]
    faults += [f"{name!r} is missing from {names[0]}{meant(name, only_first)}" for name in only_second]
    faults += [
        f"{name!r} has shape {tuple(first[name].shape)} in {names[0]} and {tuple(second[name].shape)} in {names[1]}"
        for name in first
        if name in second and first[name].shape != second[name].shape
    ]
    if faults:
        raise ValueError(f"{names[0]} and {names[1]} do not fit: " + "; ".join(faults))


@torch.no_grad()
def copy_into(module: nn.Module, weights: Weights) -> None:
    """Writes weights into a module in place: parameter objects stay, so optimizers and wrappers stay valid.

    Args:
        module: Receives the values, cast to its own dtypes.
        weights: Every parameter and persistent buffer by its `state_dict` name; of tied names one suffices.
    Raises:
        ValueError: A name is unknown or missing, a shape differs, or tied names are given different values.
    """
    targets = _targets(module)
    given = {name: weights[name] for name in targets if name in weights}
    owners = {address(targets[name]): name for name in reversed(given)}  # the first name of each tensor
    tied = {name: owners[address(tensor)] for name, tensor in targets.items() if address(tensor) in owners}
    covered = {**{name: weights[owner] for name, owner in tied.items()}, **weights}
    check_same(covered, targets, names=("the weights", "the module"))
    for name, value in given.items():
        owner = owners[address(targets[name])]
        if owner != name and not torch.equal(value, weights[owner]):
            raise ValueError(f"{owner!r} and {name!r} are tied in the module and differ in weights")
        if owner == name:
            local(targets[name]).copy_(local(value))


@contextmanager
def swapped(module: nn.Module, weights: Weights) -> Iterator[nn.Module]:
    """Lends a module other weights and gives its own back, bit for bit, also when the block raises."""
    own = {name: tensor.clone() for name, tensor in _targets(module).items()}
    try:
        copy_into(module, weights)
        yield module
    finally:
        copy_into(module, own)


def _targets(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def address(tensor: Tensor) -> tuple[object, ...]:
    """What two names of one tensor share; an empty tensor, or one without storage, has no address of its own."""
    part = local(tensor)
    return (part.data_ptr(), tuple(part.shape), part.dtype) if part.numel() and part.data_ptr() else (id(tensor),)


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """True when two sets of weights have the same names and are equal bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
