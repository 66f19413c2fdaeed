"""Worker processes: long-lived, since importing a trainer takes ten seconds; a crash loses the run in hand only."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import errors
from ..checkpoints import check_model_dir
from ..errors import UntaxedError
from .events import Event, Listener
from .jobs import Crash, Crew, Inline, Job
from .record import cores
from .spec import StudySpec

SMALL = 20_000_000  # parameters below which one thread a process is fastest, and as many processes as cores
PATIENCE_S = 20.0  # how long a worker may take to finish the write in hand


@contextlib.contextmanager
def open_crew(spec: StudySpec, workers: int | None) -> Iterator[Crew]:
    """Lends whoever does the study's jobs; workers end with the block, after the write in hand.

    Args:
        spec: The study.
        workers: Processes; 0: this one; None: as many as suit machine and model.
    """
    count = default_workers(spec) if workers is None else workers
    if count == 0:
        yield Inline()
        return
    threads = 1 if _small(spec) else max(1, cores() // count)
    with tempfile.TemporaryDirectory(prefix="untaxed-") as logs:
        pool = Pool(count, threads, Path(logs))
        try:
            yield pool
        finally:
            pool.close()


def default_workers(spec: StudySpec) -> int:
    """One a core for small models; one for others, and where a GPU does the work."""
    import torch

    return cores() if _small(spec) and not torch.cuda.is_available() else 1


def _small(spec: StudySpec) -> bool:
    """Whether the initial model is known to be small; one that has yet to be made or fetched is not."""
    if spec.models.pocket:
        return True
    path = spec.models.initial
    if not isinstance(path, str) or not Path(path).is_dir():
        return False
    return sum(math.prod(shape) for shape in check_model_dir(path).values()) < SMALL


class Pool:
    """Worker processes that do jobs side by side."""

    def __init__(self, count: int, threads: int, logs: Path) -> None:
        self.size = count
        self._inbox: queue.Queue[tuple[_Worker, Any]] = queue.Queue()
        self._threads, self._logs, self._started = threads, logs, 0
        self._workers = [self._start() for _ in range(count)]

    def run(self, jobs: Sequence[Job], listen: Listener) -> list[Any]:
        """Does all jobs; what each one returned, or its `Crash`.

        Raises:
            UntaxedError: The first error that is the user's; jobs in hand are given up.
        """
        results: list[Any] = [None] * len(jobs)
        waiting, busy = deque(enumerate(jobs)), dict[_Worker, int]()
        while waiting or busy:
            for worker in [worker for worker in self._workers if worker.ready and worker not in busy]:
                if waiting:
                    busy[worker], job = waiting.popleft()
                    worker.send(job)
            worker, message = self._inbox.get()
            if message is None:
                self._replace(worker)
                if worker in busy:
                    results[busy.pop(worker)] = worker.crash()
            elif "ready" in message:
                worker.ready = True
            elif "event" in message:
                listen(Event(**message["event"]))
            elif "error" in message:
                raise getattr(errors, message["error"], UntaxedError)(message["text"])
            elif worker in busy:
                results[busy.pop(worker)] = message["value"]
        return results

    def close(self) -> None:
        """Ends the workers: each finishes the write in hand."""
        for worker in self._workers:
            worker.dismiss()
        until = time.monotonic() + PATIENCE_S
        for worker in self._workers:
            worker.wait(until)

    def _start(self) -> _Worker:
        self._started += 1
        return _Worker(self._inbox, self._threads, self._logs / f"worker-{self._started}.log")

    def _replace(self, worker: _Worker) -> None:
        if worker not in self._workers:
            return
        worker.dismiss()  # closes our end of its pipe
        if not worker.ready:
            raise UntaxedError(f"a worker could not start: {worker.crash().why}")
        self._workers[self._workers.index(worker)] = self._start()


class _Worker:
    """One process, with a thread that listens to it.

    Attributes:
        ready: Whether it has said that it takes jobs.
    """

    def __init__(self, inbox: queue.Queue[tuple[_Worker, Any]], threads: int, log: Path) -> None:
        self.ready = False
        self._log = log
        environment = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", **os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        with log.open("w") as errors_to:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from untaxed.studies.worker import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors_to,
                text=True,
                encoding="utf-8",
                env=environment,
                start_new_session=True,  # Ctrl-C in the terminal reaches the study alone
            )
        threading.Thread(target=self._listen, args=(inbox,), daemon=True).start()

    def send(self, job: Job) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: the listener will say so
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()

    def _listen(self, inbox: queue.Queue[tuple[_Worker, Any]]) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if line.endswith("\n"):  # the last one of a process that was killed may be half a line
                    inbox.put((self, json.loads(line)))
        self._process.wait()
        inbox.put((self, None))

    def crash(self) -> Crash:
        """How the process ended, and the last that it said."""
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        log = self._log.read_text(errors="replace")
        last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")
        return Crash(f"the worker died, {how}{hint}" + (f": {last[:200]}" if last else ""), log[-20_000:])

    def dismiss(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def wait(self, until: float) -> None:
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
