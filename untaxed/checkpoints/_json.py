"""Reading the JSON files of a model directory, which anybody may have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

DEEPEST = 100  # levels of lists and objects: far beyond any model's, far below what copying and writing them bears


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file of a model directory."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise _too_deep(path) from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it does not hold a JSON object")
    level: list[Any] = [content]
    for _ in range(DEEPEST):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
    if level:
        raise _too_deep(path)
    return content


def _too_deep(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: it is nested more than {DEEPEST} levels deep")
