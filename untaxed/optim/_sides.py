"""What a delta is taken between: a checkpoint's directory, a module, or named tensors, all read in one way."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import LazyWeights
from ..errors import Unsupported, UsageError

Given = str | Path | nn.Module | Mapping[str, Tensor]

WRAPPERS = re.compile(r"(?:^module|(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module))\.")
ADAPTER_NAME = re.compile(r"((?:^|\.)lora_\w+)\.default(?=\.|$)")
REPLACED = re.compile(r"(?<![^.])modules_to_save\.default\.")
WEIGHTS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@cache
def plain_name(name: str) -> str:
    """A parameter's name without what wrappers put into it, as a checkpoint has it.

    Understood are DistributedDataParallel, torch.compile, FSDP, activation checkpointing and PEFT's default adapter.

    Example:
        >>> plain_name("module._orig_mod.base_model.model.model.norm.lora_A.default.weight")
        'model.norm.lora_A.weight'
    """
    while (shorter := WRAPPERS.sub("", name)) != name:
        name = shorter
    name = REPLACED.sub("", ADAPTER_NAME.sub(r"\1", name.removeprefix("base_model.model.")))
    return re.sub(r"(lora_magnitude_vector)\.weight$", r"\1", name)


def of_adapter(name: str) -> bool:
    """Whether a tensor is a LoRA adapter's."""
    return "lora_" in name and any(part.startswith("lora_") for part in name.split("."))


@dataclass(frozen=True)
class Side:
    """One of the two weights of a delta; all names are plain.

    Attributes:
        role: "initial" or "pretrained".
        label: What messages call it.
        shapes: Of every tensor.
        dtypes: Of every tensor; None where torch has none.
        read: The tensor of a name, in whatever dtype and device it has.
        tied_to: The name that stands for a tied one.
        kind: The architecture, where known.
        adapter: Whether these are LoRA adapters.
        config: Of the directory; empty for tensors at hand.
        held: Whether the tensors are in memory, not in files.
    """

    role: str
    label: str
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype | None]
    read: Callable[[str], Tensor]
    tied_to: Callable[[str], str | None] = lambda name: None
    kind: str = ""
    adapter: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    held: bool = True

    @property
    def title(self) -> str:
        """The label, and the architecture where it is known."""
        return f"{self.label} ({self.kind})" if self.kind else self.label

    def find(self, name: str) -> str | None:
        """The plain name under which a parameter's weights stand here: its own, or that of what it is tied to."""
        name = plain_name(name)
        return name if name in self.shapes else self.tied_to(name)


def side(given: Given, role: str) -> Side:
    """Reads what a user gave as one side.

    Raises:
        UsageError: It is nothing of the kind, or its directory cannot be used.
        Unsupported: Its tensors are sharded over processes, or not there at all (meta device).
    """
    if isinstance(given, str | Path):
        return _from_files(LazyWeights(given), role)
    if isinstance(given, nn.Module):
        tensors = dict(given.named_parameters())
        first = {id(tensor): plain_name(name) for name, tensor in tensors.items()}
        ties = {plain_name(name): first[id(p)] for name, p in given.named_parameters(remove_duplicate=False)}
        return from_tensors(tensors, role, label=f"{role} (a {type(given).__name__})", ties=ties)
    if isinstance(given, Mapping):
        return from_tensors(given, role)
    raise UsageError(f"{role} must be a directory, a module or a mapping of tensors, got {type(given).__name__}")


def from_tensors(
    tensors: Mapping[str, Tensor], role: str, *, label: str | None = None, ties: Mapping[str, str] | None = None
) -> Side:
    """A side of tensors at hand; they are not copied."""
    held: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise UsageError(f"{role} has {type(tensor).__name__} for {name!r}, not a tensor")
        if hasattr(tensor, "to_local") or tensor.is_meta or tensor.layout != torch.strided:
            raise Unsupported(
                f"{name!r} of {role} is sharded over processes, on the meta device or sparse, so its values are not at "
                "hand; give the checkpoint's directory"
            )
        held[plain_name(name)] = tensor.detach()
    return Side(
        role=role,
        label=label or f"{role} (tensors)",
        shapes={name: tuple(tensor.shape) for name, tensor in held.items()},
        dtypes={name: tensor.dtype for name, tensor in held.items()},
        read=held.__getitem__,
        tied_to=(ties or {}).get,
        adapter=any(map(of_adapter, held)),
    )


def _from_files(weights: LazyWeights, role: str) -> Side:
    stored = {plain_name(name): name for name in weights.entries}

    def tied_to(name: str) -> str | None:
        other = weights.tied_to(name)
        return None if other is None else plain_name(other)

    shapes, dtypes, base = weights.shapes, weights.dtypes, weights.config.get("base_model_name_or_path")
    return Side(
        role=role,
        label=f"{role} {weights.path}",
        shapes={plain: shapes[name] for plain, name in stored.items()},
        dtypes={plain: dtypes[name] for plain, name in stored.items()},
        read=lambda name: weights.tensor(stored[name]),
        tied_to=tied_to,
        kind=f"an adapter of {base}" if weights.adapter else str(weights.config.get("model_type") or "unknown"),
        adapter=weights.adapter,
        config=weights.config,
        held=False,
    )
