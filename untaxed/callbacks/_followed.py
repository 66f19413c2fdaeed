"""Which of a model's tensors a method between steps follows, and how they are copied and overwritten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ..errors import nearest
from ..weights import trainable

VALUE_HEADS = frozenset({"v_head", "value_head", "value_model"})  # as TRL and its kin call a critic inside a policy


def followed(model: nn.Module, exclude: Sequence[str] | None = ()) -> dict[str, Tensor]:
    """The local part of every trainable parameter by name, without a value head and what a shell pattern excludes.

    A value head estimates rewards, which a reset of the policy does not change; `exclude` None leaves nothing out.

    Raises:
        ValueError: Nothing is left to follow, or a pattern meets no name.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"a model (torch.nn.Module) is needed, whose parameters are followed, got {model!r}")
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


def snapshot_of(tensors: Mapping[str, Tensor], device: str | None = None) -> dict[str, Tensor]:
    """Float32 copies, on their own devices or in the host's memory (pinned where there is an accelerator)."""
    if device is None:
        return {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    pinned = torch.cuda.is_available()
    made = {}
    for name, tensor in tensors.items():
        made[name] = torch.empty(tensor.shape, dtype=torch.float32, device=device, pin_memory=pinned)
        made[name].copy_(tensor)
    return made


def overwrite(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Writes values into tensors in place, cast to their dtypes; names must agree."""
    torch._foreach_copy_(list(targets.values()), [values[name] for name in targets])
