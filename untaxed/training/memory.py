"""The highest memory of one stretch of work."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Self

import torch


class PeakMemory:
    """Measures the peak while its block runs: the accelerator's allocations, else the process's resident set.

    On Linux the kernel's mark is set back at the start, so that a worker's earlier runs do not count; elsewhere it is
    the peak of the process's whole life.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.bytes = 0

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif (mark := Path("/proc/self/clear_refs")).exists():
            with suppress(OSError):  # a container may forbid it; the peak is then the whole life's
                mark.write_text("5")  # see proc(5): sets VmHWM back
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self._device)
        else:
            self.bytes = resident_peak()


def resident_peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
