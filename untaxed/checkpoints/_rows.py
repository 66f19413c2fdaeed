"""Vocabularies that differ: which tokens and rows, and what a merge may make of it."""

from __future__ import annotations

from ..errors import CheckpointError
from ._check import EMBEDDINGS
from ._lazy import HEADS
from ._source import Source
from ._tokens import added_tokens, same_tokens, tokens_of

VOCABULARY = (*EMBEDDINGS, *HEADS, "lm_head.bias", "embed_out.bias")
REMEDY = "give all models one tokenizer (tokenizer.add_tokens, then model.resize_token_embeddings) and save them again"


def check_rows(parent: Source, lead: Source) -> list[str]:
    """Compares the vocabularies of two models.

    Returns:
        What differs and does no harm, a sentence each.
    Raises:
        CheckpointError: Rows that cannot be merged: of other tokens, of tokens that would be lost, or of nobody knows
            what; the message names them.
    """
    own, leads = _rows(parent), _rows(lead)
    if same_tokens(parent.tokenizer, lead.tokenizer):
        return _rows_beyond(parent, lead, own, leads, {}, {})
    tokens, lead_tokens = tokens_of(parent.tokenizer), tokens_of(lead.tokenizer)
    if tokens is None or lead_tokens is None:
        if own == leads:
            return []
        raise _unfit(parent, lead, own, leads, "without a tokenizer beside both, nothing says which tokens these are;")
    notes = _compare(parent, lead, tokens, lead_tokens)
    return notes + _rows_beyond(parent, lead, own, leads, tokens, lead_tokens)


def check_tokenizer(taken: Source, lead: Source, *, merged: bool) -> list[str]:
    """Checks that a tokenizer fits the rows of a merge, which are the leader's.

    Args:
        taken: The model whose tokenizer the result gets.
        lead: The leader.
        merged: Whether `taken` is merged too: the rows of its added tokens are then, whatever the leader calls them.
    Returns:
        What could not be compared, a sentence.
    Raises:
        CheckpointError: The tokenizer has tokens beyond the rows, or other tokens than the leader; the rows are named.
    """
    rows = _rows(lead)
    whose = f"the tokenizer of {taken.label} does not fit the rows of {lead.label}"
    tokens, lead_tokens = tokens_of(taken.tokenizer), tokens_of(lead.tokenizer)
    if rows and (beyond := sorted(number for number in tokens or {} if number >= rows)):
        raise CheckpointError(
            f"{whose}: there are {rows}, and its tokens need rows {beyond[0]} to {beyond[-1]} "
            f"({_listed(beyond, tokens or {})}); take a tokenizer that fits, or resize the embeddings first"
        )
    if same_tokens(taken.tokenizer, lead.tokenizer):
        return []
    if tokens is None or lead_tokens is None:
        return [f"the tokenizer of {taken.label} is taken and cannot be compared with that of {lead.label}"]
    known = added_tokens(taken.tokenizer).keys() | added_tokens(lead.tokenizer).keys() if merged else set()
    if other := sorted(n for n in tokens.keys() & lead_tokens.keys() - known if tokens[n] != lead_tokens[n]):
        raise CheckpointError(
            f"{whose}: {len(other)} tokens have other names (row {other[0]} is {tokens[other[0]]!r} there and "
            f"{lead_tokens[other[0]]!r} here); take the tokenizer of a model with these rows"
        )
    return []


def _compare(parent: Source, lead: Source, tokens: dict[int, str], lead_tokens: dict[int, str]) -> list[str]:
    other = sorted(number for number in tokens.keys() & lead_tokens.keys() if tokens[number] != lead_tokens[number])
    added = added_tokens(parent.tokenizer).keys() | added_tokens(lead.tokenizer).keys()
    if wrong := [number for number in other if number not in added]:
        raise CheckpointError(
            f"{parent.label} and {lead.label} have different vocabularies ({len(wrong)} tokens; row {wrong[0]} is "
            f"{tokens[wrong[0]]!r} in the one and {lead_tokens[wrong[0]]!r} in the other): their rows cannot be merged;"
            " merge models of one tokenizer"
        )
    notes = []
    if other:
        notes.append(
            f"{parent.label} names {len(other)} added tokens otherwise than {lead.label} ({_listed(other, tokens)}); "
            "their rows are merged all the same"
        )
    if lacking := sorted(tokens.keys() - lead_tokens.keys()):
        notes.append(
            f"{parent.label} has {len(lacking)} tokens that the tokenizer of {lead.label} lacks "
            f"({_listed(lacking, tokens)})"
        )
    return notes


def _rows_beyond(
    parent: Source, lead: Source, own: int, leads: int, tokens: dict[int, str], lead_tokens: dict[int, str]
) -> list[str]:
    if own == leads or not own or not leads:
        return []
    if lost := sorted(number for number in tokens if leads <= number < own):
        why = f"rows {lost[0]} to {lost[-1]} belong to tokens that would be lost ({_listed(lost, tokens)})"
        raise _unfit(parent, lead, own, leads, f"{why}; take the tokenizer and configuration of {parent.label}, or")
    if own > leads:
        return [f"rows {leads} to {own - 1} of the vocabulary of {parent.label} belong to no token and are left out"]
    new = sorted(number for number in lead_tokens if number >= own)
    which = f" ({_listed(new, lead_tokens)})" if new else ""
    return [f"rows {own} to {leads - 1} of the vocabulary{which} are only in {lead.label}: they stay as they are there"]


def _rows(source: Source) -> int:
    """The rows of a model's vocabulary; 0 where it has none."""
    rows = [kind.shape[0] for name, kind in source.kinds.items() if name.endswith(VOCABULARY) and kind.shape]
    return max(rows, default=0)


def _listed(numbers: list[int], names: dict[int, str], most: int = 3) -> str:
    """Some tokens as a message shows them."""
    rest = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return ", ".join(repr(names[number]) for number in numbers[:most]) + rest


def _unfit(parent: Source, lead: Source, own: int, leads: int, why: str) -> CheckpointError:
    low, high = sorted((own, leads))
    return CheckpointError(
        f"the vocabulary of {parent.label} has {own} rows and that of {lead.label} {leads} (rows {low} to {high - 1} "
        f"are in one alone): {why} {REMEDY}"
    )
