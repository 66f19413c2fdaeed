"""What malloc does with memory that was freed: keep it for the next piece, or give it back to the system."""

from __future__ import annotations

import contextlib
import ctypes

import torch

LARGEST = (32 << 20) - (1 << 16)  # bytes; glibc adapts to pieces up to 32 MiB


def keep_freed() -> None:
    """Makes malloc hand freed blocks on to the next ones.

    Left alone glibc takes every block of some megabytes fresh from the system, and the pages' first touch takes as long
    as the arithmetic on them. It adapts to what is freed: one piece of the largest size suffices. Elsewhere no harm.
    """
    piece = torch.empty(LARGEST, dtype=torch.uint8)
    del piece


def give_back() -> None:
    """Makes malloc return what it keeps to the system, where that can be asked for (glibc)."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
