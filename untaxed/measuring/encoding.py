"""From texts to tokens: what is scored, given what, in which batches.

The rule of the border, used everywhere: prompt and answer are joined by one space, unless the prompt is empty or
ends in white space or the answer starts with it; the joint text is tokenised as a whole, because that is the text
the model has seen; the answer's tokens are those after the longest common prefix with the prompt's own tokens. Where
tokenisation merges across the border, the merged token belongs to the answer and the context is a token shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..errors import DataError

T = TypeVar("T")
BATCH_TOKENS = {"cpu": 512}  # tokens of one forward pass, padding included: what stays in a core's cache is faster
DEVICE_BATCH_TOKENS = 16384  # on an accelerator
LOGIT_ENTRIES = 2**24  # logits held at once: 64 MiB in float32


@dataclass(frozen=True)
class Scored:
    """Tokens of which the last ones are scored: each from `start` on, given all before it; `where` is for errors."""

    tokens: tuple[int, ...]
    start: int
    where: str


@dataclass(frozen=True)
class Batch:
    """One forward pass and the places where its logits are read.

    Attributes:
        input_ids: ``(rows, length)``, padded on the right.
        attention_mask: The same shape, or None when nothing is padded.
        rows: ``(scored,)`` row of each scored token.
        columns: ``(scored,)`` column of the token before it, where it is predicted.
        targets: ``(scored,)`` the scored token itself.
        owners: ``(scored,)`` the item it belongs to, as a position in the list given to `batches`.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    rows: Tensor
    columns: Tensor
    targets: Tensor
    owners: Tensor


class Remembered:
    """Keeps what was computed for a tokenizer as long as the tokenizer lives: a study asks the same at every step."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Any, dict[Hashable, Any]] = WeakKeyDictionary()

    def get(self, tokenizer: Any, key: Hashable, compute: Callable[[], T]) -> T:
        """What `compute` returned for this tokenizer and key the first time."""
        known = self._known.setdefault(tokenizer, {})
        if key not in known:
            known[key] = compute()
        value: T = known[key]
        return value


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text, behind the tokens that the tokenizer itself puts before a text.

    An end-of-text token that the tokenizer would put behind is left out: more follows.
    """
    if not texts:
        return []
    leading = list(tokenizer("")["input_ids"])
    if leading[-1:] == [tokenizer.eos_token_id] and leading != [tokenizer.bos_token_id]:
        leading.pop()
    encoded = tokenizer(list(texts), add_special_tokens=False, truncation=False, padding=False, verbose=False)
    return [leading + list(ids) for ids in encoded["input_ids"]]


def encode_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """As `encode`; before an empty prompt stands the beginning-of-text token, else the end-of-text token."""
    return [ids or _opening(tokenizer) for ids in encode(tokenizer, prompts)]


def _opening(tokenizer: Any) -> list[int]:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [token]
    raise DataError("an empty prompt needs a tokenizer with a bos or eos token; give the prompt at least one word")


def join(prompt: str, answer: str) -> str:
    """Prompt and answer as one text, with one space between them where none is there."""
    glued = not prompt or prompt[-1].isspace() or answer[:1].isspace()
    return prompt + answer if glued else f"{prompt} {answer}"


def encode_answers(tokenizer: Any, prompt: str, answers: Sequence[str], *, eos: bool, where: str) -> list[Scored]:
    """Every answer after the prompt, all with the same context.

    Args:
        tokenizer: The model's.
        prompt: What is given.
        answers: What is scored; where tokens merge across the border, the shortest context holds for all.
        eos: Whether the end-of-text token belongs to every answer.
        where: Names the item in errors.
    """
    if eos and tokenizer.eos_token_id is None:
        raise DataError(f"{where}: the answer must end with eos, but the tokenizer has no eos token")
    context, *joints = encode(tokenizer, [prompt, *(join(prompt, answer) for answer in answers)])
    start = min((_common(context, joint) for joint in joints), default=0)
    for answer, joint in zip(answers, joints, strict=True):
        if len(joint) <= start or not answer.strip():
            raise DataError(f"{where}: the answer {answer!r} has no token to score")
    first = [] if start else _opening(tokenizer)
    last = [tokenizer.eos_token_id] if eos else []
    return [Scored((*first, *joint, *last), start + len(first), where) for joint in joints]


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(left), len(right)))


def context_length(model: Any) -> int | None:
    """How many tokens the model can read, where its config says."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return getattr(config, "max_position_embeddings", None)


def batches(items: Sequence[Scored], *, vocabulary: int, limit: int | None = None, device: str = "cpu") -> list[Batch]:
    """Sorts items by length into padded batches; items that the model reads alike share a row.

    Args:
        items: What is scored.
        vocabulary: Size of the logits, which bounds a batch as much as its tokens do.
        limit: The model's context length; None is unlimited.
        device: The kind of device, which says how many tokens a batch may have.
    Raises:
        DataError: An item is longer than the context; it is never cut.
    """
    readers: dict[tuple[int, ...], list[int]] = {}
    for number, item in enumerate(items):
        reads = item.tokens[:-1]  # the last token is predicted, never read
        if limit is not None and len(reads) > limit:
            raise DataError(f"{item.where} has {len(reads)} tokens, more than the model's context of {limit}")
        readers.setdefault(reads, []).append(number)
    tokens = BATCH_TOKENS.get(device, DEVICE_BATCH_TOKENS)
    return [_batch(rows, items) for rows in _groups(readers, items, vocabulary, tokens)]


def _groups(
    readers: dict[tuple[int, ...], list[int]], items: Sequence[Scored], vocabulary: int, batch_tokens: int
) -> Iterable[list[tuple[tuple[int, ...], list[int]]]]:
    group: list[tuple[tuple[int, ...], list[int]]] = []
    scored = 0
    for reads, numbers in sorted(readers.items(), key=lambda row: len(row[0])):
        more = sum(len(items[number].tokens) - items[number].start for number in numbers)
        full = (len(group) + 1) * len(reads) > batch_tokens or (scored + more) * vocabulary > LOGIT_ENTRIES
        if group and full:
            yield group
            group, scored = [], 0
        group.append((reads, numbers))
        scored += more
    if group:
        yield group


def _batch(group: list[tuple[tuple[int, ...], list[int]]], items: Sequence[Scored]) -> Batch:
    length = max(len(reads) for reads, _ in group)
    input_ids = torch.zeros(len(group), length, dtype=torch.long)
    mask = torch.zeros(len(group), length, dtype=torch.long)
    places: list[tuple[int, int, int, int]] = []
    for row, (reads, numbers) in enumerate(group):
        input_ids[row, : len(reads)] = torch.tensor(reads, dtype=torch.long)
        mask[row, : len(reads)] = 1
        for number in numbers:
            tokens, start = items[number].tokens, items[number].start
            places += [(row, at - 1, tokens[at], number) for at in range(start, len(tokens))]
    rows, columns, targets, owners = torch.tensor(places, dtype=torch.long).reshape(-1, 4).unbind(1)
    return Batch(input_ids, None if bool(mask.all()) else mask, rows, columns, targets, owners)
