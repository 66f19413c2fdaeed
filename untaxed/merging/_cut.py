"""The settings by which rows cut a model into blocks, and what a row of blocks and ratios shares with another."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol

from ..errors import SpecError, UsageError
from ..sites import Context
from ._blocks import partition
from ._partition import AS_AVERAGE, AS_RELEASED, Partition, Weighting

Blocks = int | dict[str, str]
Policies = Literal["as_average", "as_released"]


class Cut(Protocol):
    """A row whose settings say how a model is cut."""

    name: ClassVar[str]

    @property
    def blocks(self) -> Blocks: ...
    @property
    def apart(self) -> bool: ...
    @property
    def policies(self) -> Policies: ...
    @property
    def weighting(self) -> Weighting: ...
    def settings(self) -> dict[str, Any]: ...


def cut(row: Cut, weights: Any) -> Partition:
    """The partition that a row's settings ask for, of a module, weights or shapes."""
    policies = {"as_average": AS_AVERAGE, "as_released": AS_RELEASED}[row.policies]
    return partition(weights, row.blocks, apart=row.apart, policies=policies, weighting=row.weighting)


def check_cut(row: Cut, context: Context) -> Partition | None:
    """The partition of the initial model, where its shapes are known; a `SpecError` names the row that does not fit."""
    if context.shapes is None:
        return None
    try:
        return cut(row, {name: tuple(shape) for name, shape in context.shapes.items()})
    except UsageError as error:
        raise SpecError(f"methods: {row.name}: {error}") from None


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raises `ValueError` unless a setting is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_blocks(blocks: Blocks) -> None:
    """Raises `ValueError` unless blocks are a number of groups, or expressions by name."""
    if not isinstance(blocks, Mapping):
        check_count("blocks", blocks)
    elif not blocks:
        raise ValueError("blocks must be a number, or regular expressions by name, got none")


def check_least(name: str, value: float, least: float = 0.0) -> None:
    """Raises `ValueError` unless a setting is a finite number of at least `least`."""
    if isinstance(value, bool) or not math.isfinite(value) or value < least:
        raise ValueError(f"{name} must be a finite number of at least {least}, got {value!r}")


def short_tag(name: str, shown: list[Any], settings: Mapping[str, Any]) -> str:
    """A folder's name that shows the settings that matter, and of all of them a hash."""
    text = json.dumps(settings, sort_keys=True, allow_nan=False)
    return "-".join([name, *map(str, shown), hashlib.sha256(text.encode()).hexdigest()[:8]])
