"""Reading a policy that cannot be read as it lies in memory: saved to a folder, by a process of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch.distributed as dist
from torch import nn

from ..errors import RunFailed
from ..measuring import Suite

T = TypeVar("T")
PAUSE_S = 20.0  # between two words of the first process to those that wait: backends give up after minutes of silence


class Reading(Protocol):
    """A process that reads a saved policy."""

    def wait(self, seconds: float) -> dict[str, float] | None:
        """Its values by key; None where it needs longer. Raises where it failed."""

    def close(self) -> None:
        """Ends it where it still runs."""


@runtime_checkable
class ReadsSaved(Protocol):
    """A suite that another process can make again, such as what ``load_suite`` returns."""

    @property
    def suite(self) -> Suite: ...

    def read_saved(self, folder: Path, keys: Sequence[str]) -> Reading:
        """Begins to read the policy in ``folder/policy``."""


def sharded(model: nn.Module) -> bool:
    """Whether a model's tensors lie in shards."""
    return any(hasattr(parameter, "device_mesh") for parameter in model.parameters())


def read_apart(suite: ReadsSaved, save: Callable[[Path], None], keys: Sequence[str]) -> dict[str, float]:
    """Saves the policy to a temporary folder, has it read there, and removes it.

    Every process calls it; the first one's reads, and all get its values, or its error.

    Args:
        suite: What is read.
        save: Writes the policy with its tokenizer into a folder; every process calls it.
        keys: The measures wanted.
    Raises:
        RunFailed: It could not be read; the last line that the process said.
    """
    folder = Path(from_first(lambda: tempfile.mkdtemp(prefix="untaxed-policy-")))
    begun: list[Reading] = []  # by the first process alone
    try:
        save(folder / "policy")
        from_first(lambda: begun.append(suite.read_saved(folder, keys)))
        while (values := from_first(lambda: begun[0].wait(PAUSE_S))) is None:
            pass
        return values
    finally:
        for reading in begun:
            reading.close()
        if is_first():
            shutil.rmtree(folder, ignore_errors=True)


def is_first() -> bool:
    """True in one process alone, and in the first of several."""
    return not _several() or dist.get_rank() == 0


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them; its error, too."""
    if not _several():
        return make()
    box: list[Any] = [None, None]
    if is_first():
        try:
            box[0] = make()
        except Exception as error:  # the others wait for a word
            box[1] = str(error)
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise RunFailed(box[1])
    found: T = box[0]
    return found


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
