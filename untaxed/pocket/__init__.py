"""The embedded worlds: a tiny language, shipped tiny models, gold rewards and abilities. Nothing is downloaded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from .world import EVERY as EVERY
from .world import World as World
from .worlds import REVIEWS
from .worlds import WORLDS as WORLDS

_log = logging.getLogger(__name__)

# the first world's, as most people need no other; the others' are methods of WORLDS["pocket_safety"]
pretrained_path = REVIEWS.pretrained_path
initial_path = REVIEWS.initial_path
proxy_path = REVIEWS.proxy_path
preferences = REVIEWS.preferences
suite = REVIEWS.suite
task = REVIEWS.task
general_prompts = REVIEWS.general_prompts
reference_sets = REVIEWS.reference_sets
replay = REVIEWS.replay


def build(out: Path | str | None = None, *, seed: int = 0, progress: Callable[[str], None] = _log.info) -> Path:
    """Makes the shipped models again from their seed, in some ten minutes of one core.

    Args:
        out: Directory for `pretrained` and each world's `initial`, `proxy` and preferences; by default the package's.
        seed: Everything random follows from it.
        progress: Called with one line now and then.
    """
    from . import _build

    return _build.build(_build.DATA if out is None else out, seed=seed, progress=progress)
