"""The state of attached methods on disk: one safetensors file a process, plain values in its metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import StoreError


def write_state(directory: Path, state: Mapping[str, Any], *, rank: int, world: int) -> None:
    """Writes a state dict whose ``states`` hold plain values and mappings of tensors."""
    tensors: dict[str, Tensor] = {}
    plain = []
    for number, live in enumerate(state["states"]):
        groups = {key: value for key, value in live.items() if isinstance(value, Mapping)}
        tensors |= {
            f"{number}/{key}/{name}": tensor.contiguous()
            for key, group in groups.items()
            for name, tensor in group.items()
        }
        plain.append({key: value for key, value in live.items() if key not in groups} | {"groups": sorted(groups)})
    directory.mkdir(exist_ok=True)
    path = directory / _file(rank, world)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"state": json.dumps({**state, "states": plain})})
    os.replace(partial, path)


def read_state(directory: Path, *, rank: int, world: int) -> dict[str, Any]:
    """Reads what `write_state` wrote.

    Raises:
        StoreError: There is none for this process, or it is damaged.
    """
    path = directory / _file(rank, world)
    if not path.is_file():
        raise StoreError(
            f"{path} is missing: the checkpoint was saved without these methods, or by another number of processes; "
            "give the folder with load_checkpoint where the trainer resumes from elsewhere"
        )
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            for live in state["states"]:
                live |= {key: {} for key in live.pop("groups")}
            for key in file.keys():  # noqa: SIM118  (not a mapping)
                number, group, name = key.split("/", 2)
                state["states"][int(number)][group][name] = file.get_tensor(key)
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} is damaged: {error}") from error
    return state


def _file(rank: int, world: int) -> str:
    return f"rank-{rank}-of-{world}.safetensors"
