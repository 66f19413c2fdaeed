"""The one-pass C form of merged AdamW (`kernel/`): compiled at first use, run on torch's number of threads.

It is compiled into a private temporary folder, loaded and removed again (about a second a process), so that no
library lies about where somebody could exchange it. Where there is no C compiler `load` gives None.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

BLOCK = 4096
WINDOW = 1 << 16
EVERYTHING = 1 << 32
CONSENSUS = {"sum": 0, "sign": 1, "sign_unweighted": 2}
# one IEEE operation at a time, as the eager form has them; no fast-math
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
PART = 32 * BLOCK  # entries that a thread takes at once

RULE = np.dtype(
    [
        *((name, np.float32) for name in ("rest1", "beta2", "rest2", "step_size", "root2", "eps", "decay")),
        ("box", np.int32),
        *((name, np.float32) for name in ("weight", "update_weight", "scale", "reference_scale", "clamp")),
        ("consensus", np.int32),
        *((name, np.uint64) for name in ("key", "below", "reference_key", "reference_below")),
    ],
    align=True,
)
REFERENCE = np.dtype(
    [
        ("first", np.uintp),
        ("second", np.uintp),
        ("first_narrow", np.int32),
        ("second_narrow", np.int32),
        ("index", np.uintp),
        ("begins", np.uintp),
        ("value", np.uintp),
        ("listed", np.int64),
    ],
    align=True,
)
ITEM = np.dtype(
    [
        *((name, np.uintp) for name in ("p", "g", "m", "v")),
        ("n", np.int64),
        ("start", np.int64),
        ("rule", RULE),
        ("reference", REFERENCE),
        ("momentum", np.int32),
        *((name, np.uint32) for name in ("low", "high", "limit", "choice")),
    ],
    align=True,
)
PIECE = np.dtype(
    [
        *((name, np.int64) for name in ("item", "from", "to", "faults", "above", "between")),
        *((name, np.uintp) for name in ("place", "order")),
    ]
)


@dataclass(frozen=True)
class Reference:
    """A delta as the kernel reads it: dense, a list of kept entries, or none.

    Attributes:
        first: Flat and contiguous, float32 or bfloat16: the delta, or what `second` is taken from.
        second: The same, or None.
        index: The lower 16 bits of the kept entries' places, in their order, uint16.
        begins: Where in the list each window of 65,536 places begins, and the last one ends, int64.
        values: The kept entries', float32.
    """

    first: Tensor | None = None
    second: Tensor | None = None
    index: np.ndarray | None = None
    begins: np.ndarray | None = None
    values: Tensor | None = None

    @classmethod
    def of_kept(cls, mask: Tensor, values: Tensor) -> Reference:
        """Of the entries that a flat mask keeps: their values, float32."""
        index, begins = np.empty(values.numel(), dtype=np.uint16), [0]
        for window in mask.split(WINDOW):
            places = window.nonzero().flatten().numpy()
            begins.append(begins[-1] + places.size)
            index[begins[-2] : begins[-1]] = places
        return cls(index=index, begins=np.array(begins, dtype=np.int64), values=values.contiguous())

    @cached_property
    def given(self) -> bool:
        """False: there is no delta."""
        return self.first is not None or self.index is not None

    @cached_property
    def fields(self) -> tuple[int, ...]:
        """As `REFERENCE` has them, as long as this object lives."""
        narrow = (int(one is not None and one.dtype == torch.bfloat16) for one in (self.first, self.second))
        dense = (address(self.first), address(self.second), *narrow)
        if self.index is None or self.begins is None:
            return *dense, 0, 0, 0, 0
        return *dense, self.index.ctypes.data, self.begins.ctypes.data, address(self.values), self.index.size


class Work(IntEnum):
    """What the kernel does with a piece."""

    STEP_RANDOM = 0
    FIND = 1
    STEP_LARGE = 2
    IS_FINITE = 3


class Kernel:
    """The compiled library, run by the threads of torch's own OpenMP runtime.

    After a parallel region those go on spinning for a while: threads of our own would share the cores with them. Where
    the runtime is not found ours do the work (ctypes gives the interpreter's lock away meanwhile).
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        for size, dtype in ((library.item_size, ITEM), (library.piece_size, PIECE)):
            size.restype = ctypes.c_int64
            assert size() == dtype.itemsize
        library.run.restype = library.bits_at.restype = None
        self._parallel = openmp()

    def run(self, work: Work, items: np.ndarray, pieces: np.ndarray) -> None:
        """Works on pieces (`PIECE`) of items (`ITEM`), and writes into the pieces what it found."""
        threads = min(torch.get_num_threads(), len(pieces))
        following = ctypes.c_int64(0)
        arguments = (
            ctypes.c_int32(work),
            ctypes.c_void_p(items.ctypes.data),
            ctypes.c_void_p(pieces.ctypes.data),
            ctypes.c_int64(len(pieces)),
            ctypes.byref(following),
            ctypes.c_uint32(threads),
        )
        if threads > 1 and self._parallel is None:
            helpers = [_pool(threads - 1).submit(self.library.run, *arguments, None) for _ in range(1, threads)]
            self.library.run(*arguments, None)
            for helper in helpers:
                helper.result()
        else:
            self.library.run(*arguments, self._parallel if threads > 1 else None)


def address(tensor: Tensor | None) -> int:
    """Where its data lie; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


@lru_cache(maxsize=8)
def _cut(sizes: tuple[int, ...]) -> np.ndarray:
    rows = [
        (number, start, min(size, start + PART), 0, 0, 0, 0, 0)
        for number, size in enumerate(sizes)
        for start in range(0, size, PART)
    ]
    return np.array(rows, dtype=PIECE)


def cut(sizes: Iterable[int]) -> np.ndarray:
    """Pieces that cover items of these sizes, in order; a piece begins at a multiple of a block."""
    return _cut(tuple(sizes)).copy()


def openmp() -> ctypes.c_void_p | None:
    """How the OpenMP runtime that torch brings along and has loaded starts a parallel region."""
    folder = Path(torch.__file__).parent
    for place in (folder / "lib", folder.parent / "torch.libs"):
        for path in sorted(place.glob("lib*omp*")):
            try:
                return ctypes.cast(ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD).GOMP_parallel, ctypes.c_void_p)
            except (OSError, AttributeError):
                continue  # not in use, or of another kind
    return None


@cache
def load() -> Kernel | None:
    """The kernel, compiled for this machine; None, said once, where there is no C compiler."""
    compiler = next(
        (path for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (path := which(name))), None
    )
    if compiler is None:
        warnings.warn("no C compiler found: merged AdamW takes its eager form, which is slower", stacklevel=2)
        return None
    folder = tempfile.mkdtemp(prefix="untaxed-kernel-")
    try:
        target = Path(folder) / "kernel.so"
        source = Path(__file__).parent / "kernel" / "kernel.c"
        for flags in (FLAGS, tuple(flag for flag in FLAGS if flag != "-march=native")):
            done = subprocess.run(
                [compiler, *flags, "-o", str(target), str(source), "-lm"], capture_output=True, text=True, timeout=120
            )
            if done.returncode == 0:
                return Kernel(ctypes.CDLL(str(target)))
        raise OSError((done.stderr.strip() or "no message").splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired) as error:
        warnings.warn(f"{compiler} could not compile merged AdamW ({error}): it takes its eager form", stacklevel=2)
        return None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def which(name: str) -> str | None:
    """The program's path."""
    return shutil.which(name)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="untaxed-kernel")
