"""Which of a model's tensors a method between steps follows, and how they are copied and overwritten."""

from __future__ import annotations

import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Unsupported, nearest
from ..weights import local, reshard, trainable, wide

VALUE_HEADS = frozenset({"v_head", "value_head", "value_model"})  # as TRL and its kin call a critic inside a policy


def followed(model: nn.Module, exclude: Sequence[str] | None = ()) -> dict[str, Tensor]:
    """The local part of every trainable parameter by name, without a value head and what a shell pattern excludes.

    A value head estimates rewards, which a reset of the policy does not change; `exclude` None leaves nothing out.

    Raises:
        ValueError: Nothing is left to follow, or a pattern meets no name.
        Unsupported: The parameters are not in place (DeepSpeed's ZeRO-3, FSDP1).
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"a model (torch.nn.Module) is needed, whose parameters are followed, got {model!r}")
    check_in_place(model)
    found = trainable(model)
    heads = frozenset() if exclude is None else VALUE_HEADS
    exclude = exclude or ()
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise ValueError(f"exclude: no trainable parameter is called {pattern!r}{nearest(pattern, list(found))}")
    kept = {
        name: tensor
        for name, tensor in found.items()
        if heads.isdisjoint(name.split(".")) and not any(fnmatchcase(name, pattern) for pattern in exclude)
    }
    if not kept:
        raise ValueError(
            f"{type(model).__name__} has no trainable parameter to follow; set requires_grad on what is trained, or "
            "give the model that the optimizer trains; a value head, and what exclude names, do not count"
        )
    return kept


def check_in_place(model: nn.Module) -> None:
    """Raises `Unsupported` where what is written into a model's parameters would not reach the weights that train."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        how = "DeepSpeed's ZeRO-3 keeps them elsewhere"
    elif fsdp is not None and (
        any(isinstance(part, fsdp.FullyShardedDataParallel) for part in model.modules())
        or any(getattr(parameter, "_is_flat_param", False) for parameter in model.parameters())
    ):
        how = "FSDP1 (FullyShardedDataParallel) flattens them"
    else:
        return
    raise Unsupported(
        f"the parameters of {type(model).__name__} are not in place: {how}; shard with FSDP2 (fully_shard), or use a "
        "method that acts after training on the saved checkpoint"
    )


def restart(optimizer: Any, model: nn.Module, names: Container[str]) -> None:
    """Tells an optimizer that the weights of these names were replaced, where it keeps something that they began with:
    the window of a merge every few steps, a float32 master. Wrappers of optimizers are looked through."""
    while optimizer is not None and not hasattr(optimizer, "restart"):
        optimizer = getattr(optimizer, "optimizer", None)
    if optimizer is not None:
        optimizer.restart([parameter for name, parameter in model.named_parameters() if name in names])


@contextmanager
def lent(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Lends a model other weights, by its parameters' names, and gives its own back, bit for bit, whatever becomes of
    it in between: it may be frozen, moved or evaluated.
    """
    reshard(model)
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in values}
    own = {name: tensor.clone() for name, tensor in _locals(parameters).items()}
    try:
        overwrite(_locals(parameters), values)
        yield
    finally:
        reshard(model)
        overwrite(_locals(parameters), own)


def _locals(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: local(parameter.detach()) for name, parameter in parameters.items()}


def snapshot_of(tensors: Mapping[str, Tensor], device: str | None = None) -> dict[str, Tensor]:
    """Copies in float32 or wider, on their own devices or in the host's memory (pinned where there is an
    accelerator)."""
    if device is None:
        return {name: tensor.to(wide(tensor.dtype), copy=True) for name, tensor in tensors.items()}
    pinned = torch.cuda.is_available()
    made = {}
    for name, tensor in tensors.items():
        made[name] = torch.empty(tensor.shape, dtype=wide(tensor.dtype), device=device, pin_memory=pinned)
        made[name].copy_(tensor)
    return made


@torch.no_grad()
def overwrite(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Writes values into tensors in place, cast to their dtypes; names must agree."""
    if targets:
        torch._foreach_copy_(list(targets.values()), [values[name] for name in targets])
