"""Items in batches: padded, sorted by length, and nothing read twice.

Two items that the model reads alike share a row (choices of one token each). Items that go on differently after the
same context, as the choices of a question do, share that context: it is read once, and each goes on from its cache.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError

BATCH_TOKENS = {"cpu": 512}  # tokens of one forward pass, padding included: what stays in a core's cache is faster
DEVICE_BATCH_TOKENS = 16384  # on an accelerator
PASS_TOKENS = {"cpu": 32}  # what a pass costs beside its tokens: worth as much padding, and no more
DEVICE_PASS_TOKENS = 2048
LOGIT_ENTRIES = 2**24  # logits held at once: 64 MiB in float32

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Scored:
    """Tokens of which the last ones are scored: each from `start` on, given all before it; `where` is for errors."""

    tokens: Ids
    start: int
    where: str


@dataclass(frozen=True)
class Context:
    """What several rows begin with.

    Attributes:
        input_ids: ``(contexts, length)``, padded on the left.
        mask: The same shape, 1 where a token stands.
        parents: ``(rows,)`` the context that each row of the batch goes on from.
    """

    input_ids: Tensor
    mask: Tensor
    parents: Tensor


@dataclass(frozen=True)
class Batch:
    """One forward pass and the places where its logits are read.

    Attributes:
        input_ids: ``(rows, length)``, padded on the right.
        mask: The same shape, 1 where a token stands.
        context: What stands before the rows; None: nothing.
        rows: ``(scored,)`` row of each scored token.
        columns: ``(scored,)`` column of the token before it, where it is predicted.
        targets: ``(scored,)`` the scored token itself.
        owners: ``(scored,)`` the item it belongs to, as a position in the list given to `batches`.
    """

    input_ids: Tensor
    mask: Tensor
    context: Context | None
    rows: Tensor
    columns: Tensor
    targets: Tensor
    owners: Tensor

    def content(self) -> list[Any]:
        """All of it as plain values."""
        before = [] if self.context is None else [self.context.input_ids, self.context.mask, self.context.parents]
        own = [self.input_ids, self.mask, self.rows, self.columns, self.targets, self.owners]
        return [tensor.tolist() for tensor in (*own, *before)]


@dataclass
class _Family:
    """Rows that go on from one context; `rows` maps what is read after it to the items that read it."""

    context: Ids
    rows: dict[Ids, list[int]]

    @property
    def length(self) -> int:
        return max(map(len, self.rows))


def context_length(model: Any) -> int | None:
    """How many tokens the model can read, where its config says."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return getattr(config, "max_position_embeddings", None)


def batches(
    items: Sequence[Scored], *, vocabulary: int, limit: int | None = None, device: str = "cpu", share: bool = True
) -> list[Batch]:
    """Puts items into batches.

    Args:
        items: What is scored.
        vocabulary: Size of the logits, which bounds a batch as much as its tokens do.
        limit: The model's context length; None is unlimited.
        device: The kind of device, which says how many tokens a batch may have.
        share: Whether contexts may be shared, which needs a key-value cache.
    Raises:
        DataError: An item is longer than the context; it is never cut.
    """
    for item in items:
        if limit is not None and len(item.tokens) - 1 > limit:  # the last token is predicted, never read
            raise DataError(f"{item.where} has {len(item.tokens) - 1} tokens, more than the model's context of {limit}")
    budget = _Budget(
        BATCH_TOKENS.get(device, DEVICE_BATCH_TOKENS),
        LOGIT_ENTRIES // vocabulary,
        PASS_TOKENS.get(device, DEVICE_PASS_TOKENS),
    )
    return [_batch(group, items) for group in _groups(_families(items, share), items, budget)]


def _families(items: Sequence[Scored], share: bool) -> list[_Family]:
    """Contexts that several different rows have, then rows alone; each kind by length, so that little is padded."""
    together: dict[Ids, dict[Ids, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, item in enumerate(items):
        # The context ends before its last token, whose logits are the first that are read.
        cut = item.start - 1 if share else 0
        together[item.tokens[:cut]][item.tokens[cut:-1]].append(number)
    shared = [_Family(context, rows) for context, rows in together.items() if context and len(rows) > 1]
    alone = [
        _Family((), {context + read: numbers})
        for context, rows in together.items()
        if not context or len(rows) == 1
        for read, numbers in rows.items()
    ]
    shared.sort(key=lambda family: (family.length, len(family.context)))
    alone.sort(key=lambda family: family.length)
    return shared + alone


@dataclass(frozen=True)
class _Budget:
    """What one forward pass may have: tokens, scored tokens, and how many tokens of padding are worth another pass."""

    tokens: int
    scored: int
    another: int


def _groups(families: list[_Family], items: Sequence[Scored], budget: _Budget) -> Iterator[list[_Family]]:
    """Families of one kind, as many as the budget allows and little enough is padded for, at least one."""
    group: list[_Family] = []
    size = _Size()
    for family in families:
        numbers = [number for owners in family.rows.values() for number in owners]
        scored = sum(len(items[number].tokens) - items[number].start for number in numbers)
        more = size.with_one(family, scored)
        alone = _Size().with_one(family, scored)
        other_kind = bool(group) and bool(group[0].context) != bool(family.context)
        too_much = more.tokens > budget.tokens or more.scored > budget.scored
        if group and (other_kind or too_much or more.tokens - size.tokens > alone.tokens + budget.another):
            yield group
            group, more = [], alone
        group.append(family)
        size = more
    if group:
        yield group


@dataclass(frozen=True)
class _Size:
    """What a group of families comes to once it is padded."""

    contexts: int = 0
    longest_context: int = 0
    rows: int = 0
    longest_row: int = 0
    scored: int = 0

    @property
    def tokens(self) -> int:
        return self.contexts * self.longest_context + self.rows * self.longest_row

    def with_one(self, family: _Family, scored: int) -> _Size:
        return _Size(
            self.contexts + 1,
            max(self.longest_context, len(family.context)),
            self.rows + len(family.rows),
            max(self.longest_row, family.length),
            self.scored + scored,
        )


def _batch(group: list[_Family], items: Sequence[Scored]) -> Batch:
    reads = [read for family in group for read in family.rows]
    places: list[tuple[int, int, int, int]] = []
    for row, numbers in enumerate(numbers for family in group for numbers in family.rows.values()):
        for number in numbers:
            item = items[number]
            before = len(item.tokens) - 1 - len(reads[row])  # tokens in the context
            places += [(row, at - 1 - before, item.tokens[at], number) for at in range(item.start, len(item.tokens))]
    rows, columns, targets, owners = torch.tensor(places, dtype=torch.long).reshape(-1, 4).unbind(1)
    return Batch(*_padded(reads), _context(group), rows, columns, targets, owners)


def _context(group: list[_Family]) -> Context | None:
    if not group[0].context:
        return None
    parents = [number for number, family in enumerate(group) for _ in family.rows]
    return Context(*_padded([family.context for family in group], left=True), torch.tensor(parents))


def _padded(rows: Sequence[Ids], *, left: bool = False) -> tuple[Tensor, Tensor]:
    length = max(map(len, rows))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):
        place = slice(length - len(row), None) if left else slice(len(row))
        ids[at, place] = torch.tensor(row, dtype=torch.long)
        mask[at, place] = 1
    return ids, mask
