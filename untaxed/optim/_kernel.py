"""The one-pass C form of merged AdamW (`_kernel.c`): compiled at first use, run on torch's number of threads.

It is compiled into a private temporary folder, loaded and removed again (about half a second a process), so that no
library lies about where somebody could exchange it. Where there is no C compiler `load` gives None.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

BLOCK = 4096
EVERYTHING = 1 << 32
CONSENSUS = {"sum": 0, "sign": 1, "sign_unweighted": 2}
# one IEEE operation at a time, as the eager form has them; no fast-math
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
BATCH = 128 * BLOCK  # entries that a thread takes at once: enough for the work to outweigh the taking

Float, Int, Word, Pointer = ctypes.c_float, ctypes.c_int32, ctypes.c_uint64, ctypes.c_void_p
Long = ctypes.c_int64


class Rule(ctypes.Structure):
    """As in the C file."""

    _fields_ = (
        *((name, Float) for name in ("rest1", "beta2", "rest2", "step_size", "root2", "eps", "decay")),
        ("box", Int),
        *((name, Float) for name in ("weight", "update_weight", "scale", "reference_scale", "clamp")),
        ("consensus", Int),
        *((name, Word) for name in ("key", "below", "reference_key", "reference_below")),
    )


class Reference(ctypes.Structure):
    """As in the C file; `of` keeps the tensors alive as long as their addresses are in use."""

    _fields_ = (
        ("first", Pointer),
        ("second", Pointer),
        ("first_narrow", Int),
        ("second_narrow", Int),
        ("index", Pointer),
        ("value", Pointer),
        ("listed", Long),
    )

    @classmethod
    def none(cls) -> Reference:
        return cls()

    @classmethod
    def dense(cls, first: Tensor, second: Tensor | None) -> Reference:
        """The delta first - second (or first alone), flat and contiguous, float32 or bfloat16."""
        made = cls(
            first=first.data_ptr(),
            second=None if second is None else second.data_ptr(),
            first_narrow=first.dtype == torch.bfloat16,
            second_narrow=second is not None and second.dtype == torch.bfloat16,
        )
        made.of = (first, second)
        return made

    @classmethod
    def listed_entries(cls, index: Tensor, value: Tensor) -> Reference:
        """Kept entries alone: sorted int32 places, float32 values."""
        made = cls(index=index.data_ptr(), value=value.data_ptr(), listed=index.numel())
        made.of = (index, value)
        return made


class Magnitude(ctypes.Structure):
    """As in the C file."""

    _fields_ = (("limit", ctypes.c_uint32), ("choice", ctypes.c_uint32))


class Found(ctypes.Structure):
    """As in the C file."""

    _fields_ = (
        ("above", Pointer),
        ("between", Pointer),
        ("order", Pointer),
        ("above_count", Long),
        ("between_count", Long),
        ("faults", Long),
    )


Piece = tuple[int, int, int]  # a tensor's number, first entry, entry behind the last


class Kernel:
    """The compiled library and the threads that run it (ctypes gives the interpreter's lock away meanwhile)."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.step_random.restype = library.is_finite.restype = Long
        for name in ("moments_and_found", "step_found", "bits_at"):
            getattr(library, name).restype = None
        assert library.rule_size() == ctypes.sizeof(Rule)

    def over(self, sizes: Sequence[int], work: Callable[[Piece], int]) -> list[tuple[Piece, int]]:
        """Calls ``work`` on pieces that cover tensors of these sizes, which begin at multiples of a block.

        The calling thread works too, and each takes the next batch when it is done with one: after torch's own parallel
        regions its threads go on spinning for a while, and whoever shares a core with them is slow.
        """
        batches = batched(sizes)
        left = iter(batches)
        hands = min(torch.get_num_threads(), len(batches))

        def hand(_: int) -> list[tuple[Piece, int]]:
            done = []
            for batch in left:  # one step of a list's iterator is atomic
                done += [(piece, work(piece)) for piece in batch]
            return done

        helpers = [_pool(hands - 1).submit(hand, number) for number in range(1, hands)] if hands > 1 else []
        return hand(0) + [result for helper in helpers for result in helper.result()]


def batched(sizes: Sequence[int]) -> list[list[Piece]]:
    """Cuts tensors of these sizes into pieces, and puts small ones together: batches of about `BATCH` entries."""
    batches: list[list[Piece]] = []
    room = 0
    for number, size in enumerate(sizes):
        for start in range(0, size, BATCH):
            piece = (number, start, min(size, start + BATCH))
            if room <= 0:
                batches.append([])
                room = BATCH
            batches[-1].append(piece)
            room -= piece[2] - piece[1]
    return batches


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
        source = Path(__file__).with_name("_kernel.c")
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
