"""Task files: an ability or a perplexity in a file of its own, named in suites; those of the papers are shipped.

    abilities: {select: [piqa, {task: gsm8k, limit: 200}], report: [my_task.yaml]}
    drift: [forward_kl, {perplexity: wikitext}]

A plain name is a shipped task, ``….yaml`` a file beside the spec; what stands beside ``task:`` overrides the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ..errors import SpecError, nearest, short
from ..rows import RowsSource
from ..strict_yaml import read_yaml
from ..validation import validated
from .ability_spec import AbilitySpec, without_nulls
from .perplexity import Unit

FOLDER = Path(__file__).parent / "tasks"
SUFFIXES = (".yaml", ".yml")
PERPLEXITY = "perplexity"


class TextsSpec(BaseModel):
    """Texts for perplexity.

    Attributes:
        name: The measure's name in results.
        rows: Rows with a field ``text``.
        limit: At most so many texts a split.
        max_tokens: Only so many tokens of each text are read; None reads all of a text that fits into the context.
        unit: Perplexity a token, a word or a byte; of models with different tokenizers only the last two compare.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="perplexity", pattern=r"^[\w-]+$")
    rows: RowsSource
    limit: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=2)
    unit: Unit = "token"


def shipped() -> dict[str, Path]:
    """The task files that come with the package, by name."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}


def load_task(name: str, directory: Path) -> dict[str, Any]:
    """Reads and checks a task file.

    Args:
        name: A shipped task, or a path that ends in ``.yaml``, which starts at `directory`.
        directory: Where the spec stands that names it.
    Returns:
        Its plain values, relative paths of rows made to start at the file's folder.
    Raises:
        SpecError: There is no such task, or the file is not one.
    """
    file = directory / Path(name).expanduser() if name.endswith(SUFFIXES) else shipped().get(name)
    if file is None:
        raise SpecError(f"unknown task {name!r}{nearest(name, shipped())}; a file of your own ends in .yaml")
    raw = _anchored(read_yaml(file), file.parent)
    if not isinstance(raw, dict):
        raise SpecError(f"{file}: expected keys and values, got {short(raw)}")
    where = f"{file}: " if name.endswith(SUFFIXES) else f"task {name}: "
    given = {key: value for key, value in raw.items() if key != "kind"} if raw.get("kind") == PERPLEXITY else raw
    validated(TextsSpec if given is not raw else AbilitySpec, given, where, what="a task")
    return raw


def expanded(entry: Any, directory: Path) -> Any:
    """An ability as a suite names it, with its task file put in; what names no task stays as it is.

    Raises:
        SpecError: The task cannot be read, or is no ability.
    """
    return _expanded(entry, directory, texts=False)


def expanded_texts(entry: Any, directory: Path) -> Any:
    """The same for what stands under ``perplexity:``."""
    return _expanded(entry, directory, texts=True)


def _expanded(entry: Any, directory: Path, *, texts: bool) -> Any:
    name = entry if isinstance(entry, str) else entry.get("task") if isinstance(entry, Mapping) else None
    if not isinstance(name, str):
        return entry
    raw = load_task(name, directory)
    if (raw.get("kind") == PERPLEXITY) != texts:
        there = "it measures drift; name it there, as {perplexity: " + name + "}"
        raise SpecError(f"task {name!r}: " + ("it is an ability, not texts for perplexity" if texts else there))
    if texts:
        raw.pop("kind")
    settings = {key: value for key, value in entry.items() if key != "task"} if isinstance(entry, Mapping) else {}
    return without_nulls(_merged(raw, settings))


def located_tasks(measure: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """A suite's plain values, the task files it names by path made to start at `base`."""
    located = dict(measure)
    if isinstance(groups := measure.get("abilities"), Mapping):
        located["abilities"] = {
            group: [_at(one, base) for one in named] if isinstance(named, list) else named
            for group, named in groups.items()
        }
    if isinstance(drift := measure.get("drift"), list):
        located["drift"] = [
            {**one, PERPLEXITY: _at(one[PERPLEXITY], base)} if isinstance(one, Mapping) and PERPLEXITY in one else one
            for one in drift
        ]
    return located


def _at(entry: Any, base: Path) -> Any:
    if isinstance(entry, Mapping) and isinstance(entry.get("task"), str):
        return {**entry, "task": _at(entry["task"], base)}
    if isinstance(entry, str) and entry.endswith(SUFFIXES):
        return str((base / Path(entry).expanduser()).resolve())
    return entry


def _anchored(value: Any, base: Path) -> Any:
    """Relative ``path`` values, wherever they stand, made to start at `base`; a variable in front stays."""
    if isinstance(value, list):
        return [_anchored(inner, base) for inner in value]
    if not isinstance(value, dict):
        return value
    made = {key: _anchored(inner, base) for key, inner in value.items()}
    if isinstance(path := made.get("path"), str) and not path.startswith(("$", "~")):
        made["path"] = str((base / path).resolve())
    return made


def _merged(raw: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings over the file's values, mapping by mapping."""
    both = {key: _merged(raw[key], settings[key]) for key in raw if _mappings(raw[key], settings.get(key))}
    return {**raw, **settings, **both}


def _mappings(*values: Any) -> bool:
    return all(isinstance(value, Mapping) for value in values)
