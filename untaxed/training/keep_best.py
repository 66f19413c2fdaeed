"""The weights of the best reading of a suite, kept in a folder that is whole at every moment."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..checks import check_fraction
from ..errors import DataError
from .apart import is_first

RECORD = "best.json"


@dataclass(frozen=True)
class KeepBest:
    """Keeps the weights of the reading with the most reward among those of little tax.

    Args:
        directory: Gets ``best``, a model's directory, and ``best.json``, which says why.
        tax_at_most: Readings of more tax are left out; 1 keeps the most reward whatever it costs.
    """

    directory: str | Path
    tax_at_most: float = 0.1

    def __post_init__(self) -> None:
        check_fraction("tax_at_most", self.tax_at_most)

    def keep(self, save: Callable[[Path], None], record: Mapping[str, float]) -> None:
        """Puts the policy's weights in the place of what was kept.

        Args:
            save: Writes the policy into a folder; every process calls it.
            record: What the reading was.
        """
        folder = Path(self.directory)
        save(folder / "best.new")
        if is_first():
            _replace(folder / "best.new", folder / "best")
            (folder / RECORD).write_text(json.dumps({**record, "tax_at_most": self.tax_at_most}) + "\n")


def _replace(new: Path, target: Path) -> None:
    """Puts a folder in the place of another; what a kill leaves is the old one, or the new one under its first name."""
    if not new.is_dir():
        raise DataError(f"{new} was not written by the trainer's save_model")
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)
