r"""The SFT delta :math:`\tau = \theta_{initial} - \theta_{pretrained}`, in every form in which it can be given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from ..counter import mask_key
from ..errors import Unsupported, UsageError, nearest
from ._difference import OPERANDS, Storage, operand, parts, squares
from ._difference import Delta as Delta
from ._fit import check_comparable, refuse_zero
from ._fit import check_delta as check_delta
from ._sides import Given, from_tensors, side
from ._sides import plain_name as plain_name


def sft_delta(
    initial: Given, pretrained: Given, *, storage: Storage = "dense", dtype: torch.dtype = torch.float32
) -> Delta:
    r"""The difference that supervised fine-tuning made, :math:`\tau = \theta_{initial} - \theta_{pretrained}`.

    Args:
        initial: The model that alignment starts from: a directory, a module, or name -> tensor. Read tensor by tensor.
        pretrained: The model that it was trained from, in any of the same forms. If one is a LoRA adapter's directory,
            so must the other be; the delta is then taken between the adapters' tensors.
        storage: "dense": held in memory, 4 bytes an entry in float32, 2 in bfloat16. "memory_mapped": nothing is held;
            both directories are read where they lie, at every use. "sparse": as "memory_mapped", and an optimizer
            whose mask of the delta is drawn once (``delta_mask="once"``) reads the kept entries once and holds them.
        dtype: Of the dense delta: float32 or bfloat16.
    Returns:
        A `Delta`. Tensors that only one model has, or in another shape, have none; the optimizer refuses to start if
        it trains one of these, and says why.
    Raises:
        CheckpointError: A directory cannot be used.
        Unsupported: Only one is an adapter; a tensor is sharded; models in memory with a storage that reads files.
        UsageError: Models of different architectures or sizes; the two are equal, so that the delta is 0 everywhere.
    Example:
        >>> delta = sft_delta({"w": torch.tensor([2.0, 5.0])}, {"w": torch.tensor([1.0, 1.0])})
        >>> delta.dense("w")
        tensor([1., 4.])

    Source: Lu et al. 2024, arXiv:2405.17931, section 3.
    Differs: where no base model is given, the released code takes the policy for it, and the delta is silently 0; here
        that is refused. Between adapters the delta is of the factors A and B, each for itself, not of their product.
    """
    if storage not in get_args(Storage):
        raise UsageError(f"unknown storage {storage!r}{nearest(str(storage), get_args(Storage))}")
    if dtype not in OPERANDS or (storage != "dense" and dtype != torch.float32):
        raise UsageError(
            f"dtype is that of a dense delta, torch.float32 or torch.bfloat16, got {dtype} and {storage!r}"
        )
    sides = side(initial, "initial"), side(pretrained, "pretrained")
    if storage != "dense" and (held := [one.label for one in sides if one.held]):
        raise Unsupported(
            f"storage {storage!r} reads the checkpoints' files, and {' and '.join(held)} are in memory; give "
            "directories, or use storage 'dense'"
        )
    check_comparable(*sides)
    delta = Delta(*sides, storage=storage)
    refuse_zero(delta, delta.shapes)
    return delta.in_memory(dtype) if storage == "dense" else delta


def as_delta(given: Delta | Mapping[str, Any]) -> Delta:
    """Takes a delta in any form that a user or a configuration may give it.

    Args:
        given: A `Delta`; name -> tensor, the delta itself (not copied where it is float32 or bfloat16, contiguous and
            on the CPU); or `sft_delta`'s arguments by name, as a configuration has them: ``{"initial": directory,
            "pretrained": directory}``, if wanted with "storage".
    Raises:
        UsageError: It is none of these.
    """
    if isinstance(given, Delta):
        return given
    if not isinstance(given, Mapping) or not given:
        raise UsageError(f"a delta is a Delta, name -> tensor, or initial and pretrained; got {given!r}")
    if all(isinstance(value, Tensor) for value in given.values()):
        delta = Delta(from_tensors(given, "delta", label="the delta given"))
        held = {plain_name(name): operand(tensor) for name, tensor in given.items()}
        return delta.like(held.__getitem__, delta.label)
    keys = ("initial", "pretrained", "storage")
    if unknown := [str(key) for key in given if key not in keys]:
        raise UsageError(f"unknown key {unknown[0]!r} of a delta{nearest(unknown[0], keys)}")
    if absent := [key for key in keys[:2] if key not in given]:
        raise UsageError(f"a delta needs both initial and pretrained; {absent[0]} is missing")
    return sft_delta(**given)


def random_direction(delta: Delta, seed: int) -> Delta:
    """A delta with each tensor's norm and no other information: Gaussian entries, seeded by (seed, name).

    The control for any claim that the SFT delta's direction matters.

    Args:
        delta: Gives names, shapes and norms.
        seed: Of all tensors; each has its own numbers, in whatever order they are read.
    Returns:
        A delta held in float32; a tensor is made when first read.
    Example:
        >>> delta = as_delta({"w": torch.tensor([3.0, 4.0])})
        >>> round(random_direction(delta, seed=0).norm("w"), 4)
        5.0
    """
    made: dict[str, Tensor] = {}

    def read(name: str) -> Tensor:
        if name not in made:
            generator = torch.Generator().manual_seed(mask_key(seed, name, 0, "direction"))
            values = torch.randn(math.prod(delta.shapes[name]), generator=generator)
            norm = math.sqrt(sum(squares(values[start:stop]) for start, stop in parts(0, values.numel())))
            made[name] = values.mul_(delta.norm(name) / norm if norm else 0.0)
        return made[name]

    return delta.like(read, f"a random direction of the norms of {delta.label}")
