"""The inside of a worker process: jobs come in as lines of JSON, events and answers go out as lines of JSON.

The worker ends when its input does, after the write in hand: so it never outlives a study that was killed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import signal
import sys
import threading
import traceback
from typing import Any, TextIO

from ..errors import UntaxedError
from .events import Event
from .jobs import Inline, Job
from .store import WRITING


def serve() -> None:
    """Does the jobs on standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the study decides when its workers end
    channel = _take_stdout()
    jobs: queue.Queue[Job] = queue.Queue()
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    crew = Inline()
    _say(channel, ready=True)
    while True:
        _answer(crew, jobs.get(), channel)


def _take_stdout() -> TextIO:
    """Keeps standard output for our lines alone; what libraries print goes to the log."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return channel


def _read(jobs: queue.Queue[Job]) -> None:
    for line in sys.stdin:
        jobs.put(json.loads(line))
    with WRITING:  # finishes the write in hand
        os._exit(0)


def _answer(crew: Inline, job: Job, channel: TextIO) -> None:
    def listen(event: Event) -> None:
        _say(channel, event=dataclasses.asdict(event))

    try:
        value = crew.do(job, listen)
    except UntaxedError as error:
        _say(channel, error=type(error).__name__, text=str(error))
    except Exception as error:
        traceback.print_exc()
        _say(channel, error="UntaxedError", text=f"{type(error).__name__}: {error}")
    else:
        _say(channel, value=value)


def _say(channel: TextIO, **message: Any) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()
