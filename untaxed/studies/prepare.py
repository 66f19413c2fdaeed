"""From a spec to a task: models, data and measures, made or found in the cache.

1. The models: a path, a hub id, the embedded world, or a recipe (see `studies.models`).
2. The prompts, divided by hash into train, validation and test.
3. The rewards and the suite that measures.
4. The preference pairs: read, or sampled from `initial` and ranked by the proxy reward.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..training.task import Task

if TYPE_CHECKING:
    from .spec import StudySpec


def build_task(spec: StudySpec, cache: Path) -> Task:
    """Makes everything that the arms of a study share.

    Args:
        spec: The study.
        cache: Where prepared models and pairs are kept; see `untaxed.studies.cache.default_cache`.
    """
    if spec.models.pocket:
        from .. import pocket

        return pocket.task()
    raise NotImplementedError
