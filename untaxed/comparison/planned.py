"""What `untaxed measure` would do and what it can find, before it does: no model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..measuring.planning import CORRELATION, LEVEL, POWER
from ..studies.cache import default_cache
from . import power
from .compare import counting
from .models import Model, check_chat, opened, taken, tell_apart
from .numbers import Scored
from .scores import Kept
from .suite_file import Loaded, load_suite


def plan(
    models: Sequence[str | Path],
    initial: str | Path,
    suite: str | Path | Loaded = "pocket",
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Says what measuring these models would take, and the least loss and tax that it would find.

    Args:
        models, initial, suite, out: As `measure` takes them; without models it is planned for one.
    Returns:
        ``initial``, ``models``: what is kept already and what has to be measured; ``items``: whose count; ``prompts``,
        ``general_prompts``: how many a split; ``abilities``: their items a split; ``detectable``: rows of
        `untaxed.studies.detectable`; ``assumed``; ``asked``: what endpoints may be asked at most.
    Raises:
        UsageError: A model, the suite or its rows cannot be used.
    """
    loaded = suite if isinstance(suite, Loaded) else load_suite(suite)
    directory = default_cache() / "measured" if out is None else Path(out).absolute()
    start, others = opened(initial, "initial", directory), [opened(path, None, directory) for path in models]
    tell_apart(others, start)
    check_chat(loaded, (start, *others))
    splits = counting(max(1, len(others)))
    found = loaded.suite
    return {
        "initial": _to_do(start, start, loaded, directory),
        "models": [_to_do(model, start, loaded, directory) for model in others],
        "items": "all" if len(splits) > 1 else "test",
        "prompts": {split: len(prompts) for split, prompts in found.prompts.items()},
        "general_prompts": {split: len(prompts) for split, prompts in found.general.items()},
        "abilities": {one.name: one.items for one in found.group("abilities")},
        "detectable": power.least(found, _known(start, loaded, directory), splits),
        "assumed": {"power": POWER, "level": LEVEL, "correlation": CORRELATION},
        "asked": loaded.forecasts(max(1, len(others))),
    }


def _to_do(model: Model, start: Model, loaded: Loaded, directory: Path) -> dict[str, Any]:
    kept = Kept(directory, model=model.digest, initial=start.digest, contents=loaded.contents)
    measures, why = taken(model, start, loaded.suite)
    found = {one.key: kept.known(one) is not None for one in measures}
    return {
        **{"name": model.name, "path": str(model.path)},
        "kept": [key for key, there in found.items() if there],
        "to_measure": [key for key, there in found.items() if not there],
        "why": why,
    }


def _known(start: Model, loaded: Loaded, directory: Path) -> Scored:
    """The initial model's scores of abilities, as far as they are kept."""
    kept = Kept(directory, model=start.digest, initial=start.digest, contents=loaded.contents)
    found = {one.key: kept.known(one) for one in loaded.suite.group("abilities")}
    return Scored({key: one.scores for key, one in found.items() if one is not None})
