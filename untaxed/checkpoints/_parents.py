"""Whether models can be merged with each other, and the tensors that all of them then have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch

from ..errors import CheckpointError
from ._alike import check_alike
from ._check import EMBEDDINGS
from ._fitted import FittedSource
from ._lazy import HEADS
from ._rows import VOCABULARY, check_rows
from ._source import Kind, Source

# masks and frequencies that older libraries stored and newer ones calculate
CALCULATED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.masked_bias", ".position_ids")


@dataclass(frozen=True)
class Fit:
    """Models that fit each other.

    Attributes:
        parents: In the given order; each has the names and shapes of `kinds` (unless their layers were left open).
        kinds: The tensors of a merge of them.
        config: The leader's configuration; untied where `kinds` is.
        notes: What was done to make them fit, and what differs, a sentence each.
    """

    parents: list[Source]
    kinds: dict[str, Kind]
    config: dict[str, Any]
    notes: list[str]


def fit(parents: Sequence[Source], *, leader: int = 0, layers: bool = True) -> Fit:
    """Checks that models can be merged tensor by tensor, and makes them fit where a rule says how.

    - Tied weights: an output head that only some parents store apart is read as the embedding in the others, and is
      written apart.
    - Rows of the vocabulary: the result has the leader's. Rows that a parent has too many of are not read if no token
      of its tokenizer needs them; rows that it lacks are read as the leader's.
    - Dtypes: floating-point tensors that differ are written in the narrowest dtype that holds all of them exactly.
    - Masks and frequencies that older libraries stored are the leader's.

    Args:
        parents: Any number of models.
        leader: The one whose configuration and tokenizer the result gets.
        layers: Whether all must have the same tensors; False where a recipe takes other layers of each, which then
            asks `common_kind` of what it puts together. `kinds` is the leader's alone in that case.
    Raises:
        CheckpointError: Architectures, heads, tensors, shapes or vocabularies that do not fit, or a quantised parent.
    """
    lead = parents[leader]
    notes: list[str] = []
    for parent in parents:
        notes += check_alike(parent, lead)
        if parent is not lead:
            notes += check_rows(parent, lead)
    names = _names(parents, lead) if layers else list(lead.kinds)
    theirs = {name for name in lead.kinds if name.endswith(CALCULATED)}
    fitted = [FittedSource(parent, lead, _kinds(parent, lead, names if layers else None), theirs) for parent in parents]
    sides = [one for one in fitted if layers or one is fitted[leader]]
    kinds = {name: common_kind(name, [(one, name) for one in sides]) for name in names}
    notes += _on_dtypes(sides, kinds)
    return Fit(list(fitted), kinds, _config(lead, kinds), notes)


def common_kind(name: str, sides: Sequence[tuple[Source, str]]) -> Kind:
    """Dtype and shape of a tensor that is merged from several.

    Args:
        name: What the result is called.
        sides: The models and what the tensor is called in each.
    Raises:
        CheckpointError: Shapes differ, or floating-point numbers meet others.
    """
    (first, called), *others = sides
    kind = first.kind(called)
    for source, its_name in others:
        other = source.kind(its_name)
        if other.shape != kind.shape:
            raise CheckpointError(
                f"{name!r} has shape {kind.shape} in {first.label} and {other.shape} in {source.label}: only models of "
                "one architecture and size can be merged"
            )
        if other.dtype != kind.dtype and not (other.dtype.is_floating_point and kind.dtype.is_floating_point):
            raise CheckpointError(
                f"{name!r} is stored as {kind.dtype} in {first.label} and as {other.dtype} in {source.label}: numbers "
                "of these kinds cannot be merged"
            )
    return Kind(reduce(wider, (source.kind(its_name).dtype for source, its_name in sides)), kind.shape)


def wider(first: torch.dtype, second: torch.dtype) -> torch.dtype:
    """The narrowest floating-point dtype that holds the numbers of both exactly.

    Example:
        >>> wider(torch.bfloat16, torch.float16)
        torch.float32
    """
    if first == second:
        return first
    if first.itemsize == second.itemsize == 1:  # two kinds of eight bits
        return torch.bfloat16
    if 1 in (first.itemsize, second.itemsize):
        return max(first, second, key=lambda dtype: dtype.itemsize)
    return torch.promote_types(first, second)


def _names(parents: Sequence[Source], lead: Source) -> list[str]:
    """The tensors of the result: the leader's, and heads that another parent stores apart from its embedding."""
    names = dict.fromkeys(lead.kinds)
    for parent in parents:
        lacking = [name for name in lead.kinds if name not in parent and not name.endswith(CALCULATED)]
        beyond = [name for name in parent.kinds if name not in lead and not name.endswith(CALCULATED)]
        for one, other, missing in ((parent, lead, lacking), (lead, parent, beyond)):
            if missing:
                raise CheckpointError(
                    f"{one.label} lacks {missing[0]!r}, which {other.label} has ({len(missing)} such tensors): only "
                    "models of one architecture and size can be merged"
                )
        names.update(dict.fromkeys(name for name in parent.kinds if lead.tied_to(name) in parent.kinds))
    return list(names)


def _kinds(parent: Source, lead: Source, names: Sequence[str] | None) -> dict[str, Kind]:
    """What a parent has once it is fitted: its dtypes, and the leader's rows of the vocabulary."""
    kinds = {}
    for name in parent.kinds if names is None else names:
        kind = lead.kind(name) if name.endswith(CALCULATED) and name in lead else parent.kind(name)
        if name in lead and _only_rows_differ(name, kind, lead.kind(name)):
            kind = Kind(kind.dtype, lead.kind(name).shape)
        kinds[name] = kind
    return kinds


def _only_rows_differ(name: str, kind: Kind, other: Kind) -> bool:
    return name.endswith(VOCABULARY) and kind.shape[1:] == other.shape[1:]


def _config(lead: Source, kinds: dict[str, Kind]) -> dict[str, Any]:
    """The leader's configuration; a head and an embedding that are both written must not be tied when loaded."""
    ends = [[name for name in kinds if name.endswith(which)] for which in (HEADS, EMBEDDINGS)]
    apart = all(ends) and (
        lead.config.get("tie_word_embeddings") is True or any(name not in lead.kinds for name in kinds)
    )
    return {**lead.config, "tie_word_embeddings": False} if apart else dict(lead.config)


def _on_dtypes(parents: Sequence[Source], kinds: dict[str, Kind]) -> list[str]:
    differing = [name for name in kinds if len({parent.kind(name).dtype for parent in parents}) > 1]
    if not differing:
        return []
    name = differing[0]
    said = ", ".join(f"{parent.kind(name).dtype} in {parent.label}" for parent in parents)
    return [
        f"{len(differing)} tensors are stored in different dtypes ({name!r}: {said}); they are written as "
        f"{kinds[name].dtype} unless the recipe names a dtype"
    ]
