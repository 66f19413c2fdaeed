"""No progress bars while library code works; only the command line prints."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import require


@contextmanager
def no_bars() -> Iterator[None]:
    """Switches off the bars of transformers, and of datasets where it is loaded, and puts them back."""
    transformers = require("transformers", extra="train").utils.logging
    datasets = sys.modules.get("datasets")
    shown = transformers.is_progress_bar_enabled(), datasets is not None and datasets.is_progress_bar_enabled()
    transformers.disable_progress_bar()
    if datasets is not None:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown[0]:
            transformers.enable_progress_bar()
        if datasets is not None and shown[1]:
            datasets.enable_progress_bars()
