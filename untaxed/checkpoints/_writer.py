"""Writing a checkpoint block by block, in any order and from any thread; it appears whole or not at all."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from ..errors import CheckpointError
from ._claim import check_free, check_room
from ._finite import finite
from ._layout import INDEX, SHARD_BYTES, index, layout
from ._save import appearing
from ._source import Kind

GATHER = 32 * 2**20  # bytes


class ShardedWriter:
    """Writes a safetensors checkpoint whose layout is decided first: headers, then blocks at their places.

    A context manager: when its block ends well, everything is flushed to the disk and the directory appears under its
    name; when it does not, nothing is left. One file ``model.safetensors``, or shards with an index.

    Args:
        path: The directory to appear.
        entries: Dtype and shape by tensor name, as `Source.kinds` has them.
        shard_bytes: Most bytes of tensors a file.
        metadata: Text for the files' headers.
        parents: Directories that are read meanwhile; none may be `path` or hold it.
        allow_nonfinite: Whether NaN and infinity are written.
    Attributes:
        directory: Where the files lie until then; other files go beside them.
        shards: The layout.
        nbytes: Bytes of all files of weights.
    Raises:
        StoreError: `path` is there already, is a parent, is being written by somebody else, cannot be written, or the
            disk has too little room.
    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> out = Path(tempfile.mkdtemp()) / "model"
        >>> with ShardedWriter(out, {"w": (torch.bfloat16, (2, 2))}) as writer:
        ...     writer.write("w", 2, torch.ones(2))
        ...     writer.write("w", 0, torch.zeros(2))
        >>> [file.name for file in out.iterdir()]
        ['model.safetensors']
    """

    def __init__(
        self,
        path: str | Path,
        entries: Mapping[str, tuple[torch.dtype, Sequence[int]]],
        *,
        shard_bytes: int = SHARD_BYTES,
        metadata: Mapping[str, str] | None = None,
        parents: Iterable[Path] = (),
        allow_nonfinite: bool = False,
    ) -> None:
        self.path = Path(path)
        self.kinds = {name: Kind(dtype, tuple(shape)) for name, (dtype, shape) in entries.items()}
        self.shards = layout(entries, shard_bytes=shard_bytes, metadata=metadata)
        self.nbytes = sum(shard.nbytes for shard in self.shards)
        self.parents = tuple(parents)
        self._allow_nonfinite = allow_nonfinite
        self._idle = threading.Condition()
        self._open, self._writing = False, 0
        self._gathered: dict[int, tuple[int, int, int]] = {}  # file -> bytes written since, first and last place
        self._rest = {name: kind.numel for name, kind in self.kinds.items()}

    def __enter__(self) -> ShardedWriter:
        check_free(self.path, self.parents)
        with ExitStack() as stack:
            self.directory = stack.enter_context(appearing(self.path, alone=True))
            check_room(self.path, self.nbytes)  # now that what an earlier attempt left is gone
            self._places: dict[str, tuple[int, int]] = {}  # name -> file, first byte
            for shard in self.shards:
                handle = os.open(self.directory / shard.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                stack.callback(os.close, handle)
                os.truncate(handle, shard.nbytes)
                _write_at(handle, memoryview(shard.header), 0)
                self._places.update({name: (handle, start) for name, start in shard.starts.items()})
            self._stack = stack.pop_all()
        self._open = True
        return self

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Writes a block of a flat tensor at its place, cast once to the tensor's dtype; every entry exactly once.

        Raises:
            CheckpointError: The dtype cannot hold the values, or (unless allowed) they are not finite.
        """
        kind = self.kinds[name]
        handle, at = self._places[name]
        part = _cast(values.detach().reshape(-1), kind.dtype, name)
        if not self._allow_nonfinite:
            _check_finite(part, name)
        assert 0 <= start <= start + part.numel() <= kind.numel, f"block outside {name}"
        with self._busy(name, part.numel()):
            place = at + start * kind.dtype.itemsize
            _write_at(handle, part.view(torch.uint8).numpy().data, place)
            self._send(handle, place, place + part.nbytes)

    def _send(self, handle: int, first: int, last: int) -> None:
        """Starts the disk on what has gathered, so that the flush at the end has little left to wait for."""
        with self._idle:
            size, low, high = self._gathered.get(handle, (0, first, last))
            size, low, high = size + last - first, min(low, first), max(high, last)
            self._gathered[handle] = size, low, high
            if size < GATHER:
                return
            del self._gathered[handle]
        if hasattr(os, "posix_fadvise"):  # on Linux, that pages are not needed starts their writing
            os.posix_fadvise(handle, low, high - low, os.POSIX_FADV_DONTNEED)

    @contextmanager
    def _busy(self, name: str, numel: int) -> Iterator[None]:
        """Keeps the files open until a thread has written: a closed file's number may be another file's soon."""
        with self._idle:
            if not self._open:
                raise RuntimeError("the writer is closed")
            self._writing += 1
        try:
            yield
        finally:
            with self._idle:
                self._writing -= 1
                self._rest[name] -= numel
                self._idle.notify_all()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._idle:
            self._open = False
            self._idle.wait_for(lambda: not self._writing)
        with self._stack:
            if error is not None:
                raise error
            self._finish()

    def _finish(self) -> None:
        unfinished = [name for name, rest in self._rest.items() if rest]
        assert not unfinished, f"tensors not written exactly once: {unfinished[:3]}"
        if len(self.shards) > 1:
            total = sum(kind.nbytes for kind in self.kinds.values())
            (self.directory / INDEX).write_text(index(self.shards, total))


def _cast(values: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """In the dtype that is written; finite numbers beyond it would become infinite, or its largest number, unsaid."""
    if values.is_floating_point() and values.dtype != dtype and values.numel():
        most = torch.finfo(dtype).max
        if most < 1e38 and most < max(-values.min(), values.max()) < math.inf:
            raise CheckpointError(
                f"{name!r} holds a number beyond {dtype}'s largest, {most:g}; write bfloat16 or float32"
            )
    return values.to(dtype).contiguous()


def _check_finite(part: Tensor, name: str) -> None:
    """After the cast; a sum that is finite says it for all entries, in one quick pass."""
    if not part.dtype.is_floating_point or (part.dtype.itemsize > 1 and part.sum().isfinite()):
        return
    if not finite(part):
        raise CheckpointError(
            f"{name!r} becomes NaN or infinite: its numbers go beyond {part.dtype}'s largest, "
            f"{torch.finfo(part.dtype).max:g}; give smaller weights, or write a dtype that holds more"
        )


def _write_at(handle: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(handle, data, at)
        data, at = data[count:], at + count
