"""The embedded world: a tiny language, shipped tiny models, a gold reward and abilities. Nothing is downloaded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from .rehearsal import general_prompts as general_prompts
from .rehearsal import reference_sets as reference_sets
from .rehearsal import replay as replay
from .world import EVERY as EVERY
from .world import initial_path as initial_path
from .world import preferences as preferences
from .world import pretrained_path as pretrained_path
from .world import proxy_path as proxy_path
from .world import suite as suite
from .world import task as task

_log = logging.getLogger(__name__)


def build(out: Path | str | None = None, *, seed: int = 0, progress: Callable[[str], None] = _log.info) -> Path:
    """Makes the shipped models again from their seed, in some six minutes of one core.

    Args:
        out: Directory for `pretrained`, `initial`, `proxy` and the preferences; by default the package's own.
        seed: Everything random follows from it.
        progress: Called with one line now and then.
    """
    from . import _build

    return _build.build(_build.DATA if out is None else out, seed=seed, progress=progress)
