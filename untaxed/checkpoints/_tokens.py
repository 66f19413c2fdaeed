"""The tokens of a tokenizer by their numbers, from its files; no library of tokenizers is asked."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError
from ._json import read_json

TOKENIZER = "tokenizer.json"


def tokens_of(directory: Path) -> dict[int, str] | None:
    """Tokens by number, from tokenizer.json or vocab.json; None where neither is there in a form that is known."""
    files = [directory / name for name in ("vocab.json", "added_tokens.json") if (directory / name).is_file()]
    if (directory / TOKENIZER).is_file():
        files = [directory / TOKENIZER]
    elif not files or files[0].name != "vocab.json":
        return None
    found: dict[int, str] = {}
    for file in files:
        pieces = _pieces(file)
        if pieces is None:
            return None
        found.update(pieces)
    return {**found, **added_tokens(directory)}


def largest_token(directory: Path) -> int | None:
    """The largest token number of a tokenizer.json; None where there is none, or it says no number."""
    file = directory / TOKENIZER
    if not file.is_file():
        return None
    return max([*(_pieces(file) or ()), *added_tokens(directory)], default=None)


def added_tokens(directory: Path) -> dict[int, str]:
    """The tokens that were added to the trained vocabulary: chat marks, padding, reserved ones."""
    file = directory / TOKENIZER
    added = (read_json(file).get("added_tokens") or []) if file.is_file() else []
    if not isinstance(added, list) or not all(map(_is_token, added)):
        raise CheckpointError(f"{file} is damaged: added_tokens is not a list of tokens")
    return {one["id"]: one["content"] for one in added}


def _is_token(one: object) -> bool:
    return isinstance(one, dict) and type(one.get("id")) is int and isinstance(one.get("content"), str)


def _pieces(file: Path) -> dict[int, str] | None:
    """The trained vocabulary of one file; None where it has another form."""
    content = read_json(file)
    model = (content.get("model") or {}) if file.name == TOKENIZER else {"vocab": content}
    vocabulary = model.get("vocab") if isinstance(model, dict) else model
    if isinstance(vocabulary, dict) and all(type(number) is int for number in vocabulary.values()):
        return {number: token for token, number in vocabulary.items()}
    if isinstance(vocabulary, list) and all(isinstance(pair, list) and pair for pair in vocabulary):
        return {number: str(pair[0]) for number, pair in enumerate(vocabulary)}  # unigram: (piece, score) in order
    if vocabulary is None or file.name != TOKENIZER:
        return None
    raise CheckpointError(f"{file} is damaged: its vocabulary is neither tokens with numbers nor pieces with scores")


def same_tokens(first: Path, second: Path) -> bool:
    """Whether two directories have the same tokenizer.json, to the byte: the usual case, and quick."""
    one, two = first / TOKENIZER, second / TOKENIZER
    if not (one.is_file() and two.is_file()) or one.stat().st_size != two.stat().st_size:
        return False
    return one.read_bytes() == two.read_bytes()
