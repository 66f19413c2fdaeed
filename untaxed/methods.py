"""The methods' table. Each method's own file owns its row; other packages add rows by the entry point group
``untaxed.methods`` (name = the method's name, object = its `Method` class)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar

from .callbacks import (
    BEMA,
    EMA,
    DriftTriggeredReset,
    ElasticReset,
    ResetToAverage,
    ResetToInitial,
    SyncReference,
    WARPAnchor,
)
from .decoding import BestOfN, LogitMixing
from .errors import SpecError, nearest
from .merging import (
    DARE,
    HMA,
    SLERP,
    TIES,
    WARP,
    Averaging,
    Extrapolation,
    HMASearch,
    ModelStock,
    PartAveraging,
)
from .method import Method
from .objectives import KL, RPO, Distill, KLLoss, Replay
from .optim import L1, L2, ChildTuning, LoRA, MoFO, OnDARE, OnlineMerging, OnTIES, UpdateDropout
from .projections import NSPO, OGPSA

log = logging.getLogger(__name__)

GROUP = "untaxed.methods"


@dataclass(frozen=True)
class Plain(Method):
    """The algorithm as it is: what every remedy is compared with."""

    name: ClassVar[str] = "plain"
    title: ClassVar[str] = "Plain"
    source: ClassVar[str] = "the algorithm itself"
    summary: ClassVar[str] = "the algorithm as it is: the arm whose tax is to be lowered"


@dataclass(frozen=True)
class EarlyStopping(Method):
    """Plain's own checkpoints, judged at the reward they reach; it needs no run of its own."""

    name: ClassVar[str] = "early_stopping"
    title: ClassVar[str] = "Early stopping"
    source: ClassVar[str] = "Gao et al. 2023, arXiv:2210.10760"
    summary: ClassVar[str] = "plain's own earlier checkpoints: the remedy that costs nothing"


ROWS: tuple[type[Method], ...] = (
    Plain, EarlyStopping, KL, Averaging, HMA, HMASearch, PartAveraging,
    SLERP, TIES, DARE, Extrapolation, ModelStock, WARP,
    EMA, ElasticReset, ResetToInitial, ResetToAverage, DriftTriggeredReset,
    OnDARE, OnTIES, OnlineMerging, UpdateDropout, MoFO, ChildTuning,
    OGPSA, NSPO,
    SyncReference, WARPAnchor, BEMA,
    L1, L2, KLLoss, Distill, RPO, Replay, LoRA,
    BestOfN, LogitMixing,
)  # fmt: skip
METHODS: dict[str, type[Method]] = {row.name: row for row in ROWS}


def get(name: str) -> type[Method]:
    """The row of a method.

    Raises:
        SpecError: No method has this name; the message names the nearest.
    """
    if name in METHODS:
        return METHODS[name]
    outside = entry_points(group=GROUP)
    for entry in outside:
        if entry.name == name:
            return _load(entry)
    raise SpecError(f"unknown method {name!r}{nearest(str(name), {*METHODS, *outside.names})}")


def build(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """A method with its settings, as a study spec writes it.

    Raises:
        SpecError: The name or a setting is wrong.
    Example:
        >>> build("averaging", {"initial_share": 0.2})
        Averaging(initial_share=0.2)
    """
    return get(name).from_settings(settings or {})


def rows() -> dict[str, type[Method]]:
    """Every row, those of other packages included; one that cannot be loaded is logged and left out."""
    table = dict(METHODS)
    for entry in entry_points(group=GROUP):
        if entry.name in METHODS:
            log.warning("method %r of %s is left out: the name is taken", entry.name, entry.value)
            continue
        try:
            table[entry.name] = _load(entry)
        except SpecError as error:
            log.warning("%s", error)
    return table


def _load(entry: EntryPoint) -> type[Method]:
    try:
        row = entry.load()
    except Exception as error:  # the other package's code: anything may happen in its import
        raise SpecError(f"method {entry.name!r} cannot be loaded from {entry.value}: {error}") from error
    if not (isinstance(row, type) and issubclass(row, Method) and getattr(row, "name", None) == entry.name):
        raise SpecError(f"method {entry.name!r}: {entry.value} is not a Method class of that name")
    return row
