"""Vocabularies that differ: which tokens and rows, and what a merge may make of it."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError
from ._check import EMBEDDINGS, read_json
from ._lazy import HEADS
from ._source import Source

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
            "their rows are merged, and the tokenizer is the latter's"
        )
    if lacking := sorted(tokens.keys() - lead_tokens.keys()):
        notes.append(
            f"{parent.label} has {len(lacking)} tokens that the tokenizer of {lead.label}, which is taken, lacks "
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


def tokens_of(directory: Path) -> dict[int, str] | None:
    """Tokens by number, from tokenizer.json or vocab.json; None where neither is there in a form that is known."""
    files = [directory / name for name in ("vocab.json", "added_tokens.json") if (directory / name).is_file()]
    if (directory / "tokenizer.json").is_file():
        files = [directory / "tokenizer.json"]
    elif not files or files[0].name != "vocab.json":
        return None
    found: dict[int, str] = {}
    for file in files:
        pieces = _pieces(file)
        if pieces is None:
            return None
        found.update(pieces)
    return {**found, **added_tokens(directory)}


def _pieces(file: Path) -> dict[int, str] | None:
    """The trained vocabulary of one file."""
    content = read_json(file)
    vocabulary = (content.get("model") or {}).get("vocab") if file.name == "tokenizer.json" else content
    if isinstance(vocabulary, list):  # unigram: (piece, score) in order
        return {number: str(pair[0]) for number, pair in enumerate(vocabulary)}
    if isinstance(vocabulary, dict) and all(isinstance(number, int) for number in vocabulary.values()):
        return {number: token for token, number in vocabulary.items()}
    return None


def added_tokens(directory: Path) -> dict[int, str]:
    """The tokens that were added to the trained vocabulary: chat marks, padding, reserved ones."""
    file = directory / "tokenizer.json"
    try:
        return (
            {one["id"]: one["content"] for one in (read_json(file).get("added_tokens") or [])} if file.is_file() else {}
        )
    except (KeyError, TypeError):
        raise CheckpointError(f"{file} is damaged: added_tokens is not a list of tokens") from None


def same_tokens(first: Path, second: Path) -> bool:
    """Whether two directories have the same tokenizer.json, to the byte: the usual case, and quick."""
    one, two = first / "tokenizer.json", second / "tokenizer.json"
    if not (one.is_file() and two.is_file()) or one.stat().st_size != two.stat().st_size:
        return False
    return one.read_bytes() == two.read_bytes()


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
