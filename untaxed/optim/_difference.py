"""A delta by parameter name: the difference of two sides, read range by range, wherever they lie."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ..errors import UsageError
from ._fit import pair_faults
from ._sides import Side, from_tensors, plain_name

Storage = Literal["dense", "sparse", "memory_mapped"]

CHUNK = 1 << 17  # entries at once: bounds the temporaries
OPERANDS = (torch.float32, torch.bfloat16)
SAMPLES, SAMPLE = 64, 4096  # a fingerprint looks at so many blocks of so many entries of a tensor


class Delta:
    """A delta by parameter name, read range by range.

    Names may carry what wrappers put into them (`plain_name`). The first time a range is read it is checked for NaN and
    infinities; later reads are not.

    Args:
        first: The weights that the second are subtracted from, or the delta itself.
        second: The weights subtracted; None: ``first`` is the delta.
        storage: How an optimizer should hold it.
        faults: Why names have no delta; found from the two sides where not given.
        label: What it was made from, for messages; found likewise.
    Attributes:
        shapes: By plain name, of every tensor that has a delta.
        storage: "dense": in memory; "memory_mapped": read from the files at every use; "sparse": the same, but the
            optimizer reads its kept entries once (its mask must be drawn once) and holds them alone.
        adapter: Whether it is between LoRA adapters.
    """

    def __init__(
        self,
        first: Side,
        second: Side | None = None,
        *,
        storage: Storage = "dense",
        faults: Mapping[str, str] | None = None,
        label: str | None = None,
    ) -> None:
        self._first, self._second = first, second
        self._faults = dict(faults if faults is not None else pair_faults(first, second or first))
        self.shapes = {name: shape for name, shape in first.shapes.items() if name not in self._faults}
        self.storage: Storage = storage
        self.adapter = first.adapter
        self.label = label or " and ".join(one.title for one in (first, second) if one is not None)
        self._finite: set[tuple[str, int, int]] = set()
        self._norms: dict[str, float] = {}
        self._lent: dict[str, tuple[Tensor, Tensor | None]] = {}  # views, which cost nothing

    def find(self, name: str) -> str | None:
        """The name in `shapes` that holds a parameter's delta: its own, or that of what it is tied to."""
        found = self._first.find(name)
        return found if found in self.shapes else None

    def why_not(self, name: str) -> str | None:
        """Why a parameter has no delta, where the checkpoints say it."""
        return self._faults.get(self._first.find(name) or plain_name(name))

    def operands(self, name: str) -> tuple[Tensor, Tensor | None]:
        """What a kernel reads: the delta is the first minus the second.

        Returns:
            Flat contiguous CPU tensors, float32 or bfloat16 each; None where the first is the delta. Views where they
            lie so already; other dtypes are converted to float32, whole, at every call. Not to be written to.
        """
        if name in self._lent:
            return self._lent[name]
        known = self._known(name)
        self._check_finite(known, 0, math.prod(self.shapes[known]))
        pair = self._pair(known)
        first, second = (None if one is None else operand(one) for one in pair)
        assert first is not None
        if all(a is None or b is None or a.data_ptr() == b.data_ptr() for a, b in zip(pair, (first, second))):
            self._lent[name] = first, second
        return first, second

    def lends(self, name: str) -> bool:
        """True where `operands` gives the same tensors at every call."""
        return name in self._lent

    def dense(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Entries ``start`` to ``stop`` of the flat delta, and only they are read.

        Returns:
            float32, shape ``(stop - start,)``, on the CPU; a view where the delta is held so. Not to be written to.
        """
        name = self._known(name)
        start, stop, _ = slice(start, stop).indices(math.prod(self.shapes[name]))
        self._check_finite(name, start, stop)
        return self._range(name, start, stop)

    def kept(self, name: str, which: Tensor, start: int = 0) -> Tensor:
        """The chosen entries of the flat delta, gathered without a dense temporary.

        Args:
            name: The parameter.
            which: bool: a mask of the entries from ``start`` on; int64: their places, counted from ``start``.
            start: Place of the first local entry in the whole flat tensor.
        Returns:
            float32, one an entry chosen, in ``which``'s order, on the CPU.
        """
        name = self._known(name)
        first, second = (None if one is None else _flat(one)[start:] for one in self._pair(name))
        assert first is not None
        which = which.detach().to("cpu").view(-1)
        gathered = torch.empty(int(which.sum()) if which.dtype == torch.bool else which.numel())
        done = 0
        for begin in range(0, which.numel(), CHUNK):
            at = _places(which[begin : begin + CHUNK], begin)
            gathered[done : done + at.numel()] = _float(first[at], None if second is None else second[at])
            done += at.numel()
        if not bool(gathered.isfinite().all()):
            raise self._not_finite(name, int((~gathered.isfinite()).sum()), gathered.numel())
        return gathered

    def norm(self, name: str) -> float:
        """The Euclidean norm of one tensor's delta, summed in float64."""
        name = self._known(name)
        if name not in self._norms:
            size = math.prod(self.shapes[name])
            self._check_finite(name, 0, size)
            self._norms[name] = math.sqrt(sum(squares(self._range(name, *part)) for part in parts(0, size)))
        return self._norms[name]

    def any(self, name: str) -> bool:
        """True when some entry is not 0; stops at the first part that has one."""
        name = self._known(name)
        return any(bool(self._range(name, *part).any()) for part in parts(0, math.prod(self.shapes[name])))

    @cached_property
    def fingerprint(self) -> str:
        """A hash that tells one delta from another, of the values and not of where they lie.

        Of a large tensor 64 evenly spread blocks of 4,096 entries are looked at, so that it costs little.
        """
        digest = hashlib.sha256()
        for name, shape in sorted(self.shapes.items()):
            digest.update(f"{name}{shape}".encode())
            for part in _samples(math.prod(shape)):
                digest.update(self._range(name, *part).contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def in_memory(self, dtype: torch.dtype) -> Delta:
        """The same delta as tensors of one dtype, made one after the other: a part of one is held twice."""
        held = from_tensors({name: self._made(name, dtype) for name in self.shapes}, "delta")
        return Delta(replace(held, tied_to=self._first.tied_to), faults=self._faults, label=self.label)

    def like(self, read: Callable[[str], Tensor], label: str) -> Delta:
        """A delta of the same names and shapes with other values."""
        return Delta(replace(self._first, read=read, shapes=self.shapes), faults=self._faults, label=label)

    def _made(self, name: str, dtype: torch.dtype) -> Tensor:
        made = torch.empty(math.prod(self.shapes[name]), dtype=dtype)
        for start, stop in parts(0, made.numel()):
            made[start:stop] = self._range(name, start, stop)
        return made.view(self.shapes[name])

    def _known(self, name: str) -> str:
        found = self.find(name)
        if found is None:
            raise UsageError(self.why_not(name) or f"{name!r} has no delta")
        return found

    def _pair(self, name: str) -> tuple[Tensor, Tensor | None]:
        if self._second is None:
            return self._first.read(name), None
        other = self._second.find(name)
        assert other is not None, name
        return self._first.read(name), self._second.read(other)

    def _range(self, name: str, start: int, stop: int) -> Tensor:
        first, second = self._pair(name)
        return _float(_flat(first)[start:stop], None if second is None else _flat(second)[start:stop])

    def _check_finite(self, name: str, start: int, stop: int) -> None:
        if (name, start, stop) in self._finite:
            return
        bad = sum(int((~self._range(name, *part).isfinite()).sum()) for part in parts(start, stop))
        if bad:
            raise self._not_finite(name, bad, stop - start)
        self._finite.add((name, start, stop))

    def _not_finite(self, name: str, bad: int, size: int) -> UsageError:
        return UsageError(
            f"the delta of {name!r} is not finite: {bad} of {size} entries are NaN or infinite ({self.label}); give "
            "checkpoints from before the training diverged, or copy them again"
        )


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1)


def operand(tensor: Tensor) -> Tensor:
    """The tensor as a kernel reads it: flat, contiguous, on the CPU, float32 or bfloat16; itself where it is so."""
    flat = _flat(tensor).to("cpu").contiguous()
    return flat if flat.dtype in OPERANDS else flat.to(torch.float32)


def _float(first: Tensor, second: Tensor | None) -> Tensor:
    """Their difference in float32, on the CPU."""
    wide = first.to("cpu", torch.float32)
    return wide if second is None else wide - second.to("cpu", torch.float32)


def squares(values: Tensor) -> float:
    """The sum of squares, in float64."""
    return float(values.to(torch.float64).square().sum())


def _places(which: Tensor, begin: int) -> Tensor:
    """The places that a part of a mask, or of a list of places, chooses."""
    return which.nonzero().view(-1) + begin if which.dtype == torch.bool else which


def parts(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """A range cut into parts of at most `CHUNK`."""
    return ((at, min(at + CHUNK, stop)) for at in range(start, stop, CHUNK))


def _samples(size: int) -> Iterator[tuple[int, int]]:
    """The whole range, or `SAMPLES` blocks of it from its start to its end."""
    if size <= SAMPLES * SAMPLE:
        return parts(0, size)
    starts = (number * (size - SAMPLE) // (SAMPLES - 1) for number in range(SAMPLES))
    return ((start, start + SAMPLE) for start in starts)
