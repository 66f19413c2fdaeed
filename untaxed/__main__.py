"""`untaxed`, and `python -m untaxed`: catches Ctrl-C before anything is imported that takes time."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from .errors import UNSTARTED


def main() -> None:
    """The console script."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores it
        signal.signal(signal.SIGINT, _leave)
    from .cli import app

    app()


def _leave(signum: int, frame: FrameType | None) -> None:
    """Ends the process at once: an exception would be lost, or printed, inside the imports of others."""
    sys.stderr.write(f"{UNSTARTED}\n")
    sys.stderr.flush()
    os._exit(130)


if __name__ == "__main__":
    main()
