"""Where a spec's paths lead: environment variables are put in, and relative paths start at the spec's folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ..measuring.reward_sources import anchored
from ..measuring.tasks import located_tasks
from .sources import WORLDS

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def located(raw: Any, base: Path) -> Any:
    """Returns a spec's plain values with variables put in and paths made absolute.

    ``${NAME}`` and ``${NAME:-default}`` may stand in every text; a variable that is not set and has no default stays as
    it is, for whoever reads the file to name it. Paths are the values of the keys ``path``, wherever they stand, and
    ``include`` beside ``lm_eval``, under
    ``models`` those names that lead to something that exists or that look like a path and not like a hub id, task
    files, and the modules of rewards and judges that lie beside the spec or in the working directory.
    """
    raw = _walk(raw, base)
    if isinstance(raw, dict) and isinstance(raw.get("models"), dict):
        raw["models"] = {key: _models(value, base) for key, value in raw["models"].items()}
    if isinstance(raw, dict) and isinstance(raw.get("measure"), dict):
        measure = located_tasks(raw["measure"], base)
        ways = {"reward": _rewards, "win_rates": _each}
        raw["measure"] = {key: ways[key](value, base) if key in ways else value for key, value in measure.items()}
    return raw


def _walk(value: Any, base: Path) -> Any:
    if isinstance(value, dict):
        walked = {key: _walk(inner, base) for key, inner in value.items()}
        if isinstance(walked.get("path"), str):
            walked["path"] = _absolute(walked["path"], base)
        if "lm_eval" in walked and isinstance(walked.get("include"), str):
            walked["include"] = _absolute(walked["include"], base)
        return walked
    if isinstance(value, list):
        return [_walk(inner, base) for inner in value]
    return _VARIABLE.sub(_variable, value) if isinstance(value, str) else value


def _variable(match: re.Match[str]) -> str:
    name, default = match.groups()
    return os.environ.get(name) or (match[0] if default is None else default)


def _models(value: Any, base: Path) -> Any:
    if isinstance(value, list):
        return [_models(inner, base) for inner in value]
    if not isinstance(value, str) or value in WORLDS:
        return value
    looks_like_path = value.startswith((".", "/", "~")) or value.count("/") > 1
    return _absolute(value, base) if looks_like_path or (base / value).exists() else value


def _rewards(value: Any, base: Path) -> Any:
    if not isinstance(value, dict) or not {"proxy", "gold", "others"} & set(value):
        return _entry(value, base)
    return {key: _each(inner, base) if key == "others" else _entry(inner, base) for key, inner in value.items()}


def _each(value: Any, base: Path) -> Any:
    """Entries by name, of rewards or of win rates."""
    return {name: _entry(inner, base) for name, inner in value.items()} if isinstance(value, dict) else value


def _entry(value: Any, base: Path) -> Any:
    """One reward or judge: a function by import path, a model, or a win rate by one of these."""
    if isinstance(value, str):
        return anchored(value, base) if all(value.partition(":")) else value
    ways = {"reward_model": _models, "causal_lm": _models, "reward": _entry}
    if not isinstance(value, dict):
        return value
    return {key: ways[key](inner, base) if key in ways else inner for key, inner in value.items()}


def _absolute(path: str, base: Path) -> str:
    if path.startswith("$"):  # a variable that is not set: `rows` asks the hub instead, or names it
        return path
    return str((base / Path(path).expanduser()).resolve())
