"""Reference losses: what a model must not become worse at, as batches and a loss of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid
from torch.nn.utils.rnn import pad_sequence

from ..errors import DataError
from ..measuring.batching import BATCH_TOKENS, DEVICE_BATCH_TOKENS, Scored
from ..measuring.encoding import encode, encode_answers
from ..measuring.forward import read

Loss = Literal["ce", "preference"]
Rows = Sequence[Any]
FORMS = (("prompt", "completion"), ("text",), ("prompt", "chosen", "rejected"))


@dataclass(frozen=True)
class ReferenceSet:
    """One ability's reference data.

    Attributes:
        name: The user's.
        batches: What the loss is called with, one after the other.
        loss: Of a model and a batch; the sum over the batches, times `weight` each, is the set's loss.
        weight: Of every batch.
    """

    name: str
    batches: Sequence[Any]
    loss: Callable[[Any, Any], Tensor]
    weight: float = 1.0


@dataclass(frozen=True)
class TokenBatch:
    """Rows of tokens, padded on the right, and what is scored of them.

    Attributes:
        input_ids: ``(rows, length)``.
        mask: The same shape, 1 where a token stands.
        rows, columns, targets: ``(scored,)``: where each scored token is predicted, and which it is.
    """

    input_ids: Tensor
    mask: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor


def check_sets(sets: Mapping[str, Any] | None, loss: Any) -> None:
    """Raises `DataError` where reference sets cannot be used; what a callable takes is its own matter."""
    if not isinstance(sets, Mapping) or not sets:
        raise DataError(f"reference_sets must be a mapping, name -> rows, with at least one set, got {_kind(sets)}")
    for name, rows in sets.items():
        if isinstance(rows, str | bytes | Mapping) or not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
            raise DataError(f"reference set {name!r} must be a list of rows, got {_kind(rows)}")
        if not len(rows):
            raise DataError(f"reference set {name!r} is empty: it protects nothing; give it rows, or leave it out")
        if not callable(loss):
            for number, row in enumerate(rows):
                _check_row(row, loss, f"reference set {name!r}, row {number}")


def _form(row: Any) -> tuple[str, ...] | None:
    """The fields of a row that count, the last of the forms that it has; None: it has none of them."""
    return next((form for form in reversed(FORMS) if isinstance(row, Mapping) and row.keys() >= set(form)), None)


def _check_row(row: Any, loss: Loss, where: str) -> None:
    if isinstance(row, str):
        row = {"text": row}
    keys = _form(row)
    if keys is None:
        given = f"the fields {', '.join(map(str, row))}" if isinstance(row, Mapping) else _kind(row)
        raise DataError(
            f"{where}: expected prompt and completion, or prompt, chosen and rejected, or text, got {given}"
        )
    if loss == "preference" and len(keys) < 3:
        raise DataError(f"{where}: loss 'preference' needs prompt, chosen and rejected; 'ce' takes what is there")
    if loss == "preference" and row["chosen"] == row["rejected"]:
        raise DataError(f"{where}: chosen equals rejected, whose loss has no gradient; leave it out")
    for key in keys:
        if not isinstance(row[key], str):
            raise DataError(f"{where}: {key} must be a text, got {_kind(row[key])}; make a text of it first")
        if key != "prompt" and not row[key].strip():
            raise DataError(f"{where}: {key} is empty")


def digest_of(sets: Mapping[str, Rows], loss: Any) -> str:
    """By which a saved state knows its reference sets: their names and rows; of a callable's batches how many."""
    content = {name: len(rows) if callable(loss) else [_row(row) for row in rows] for name, rows in sets.items()}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _kind(value: Any) -> str:
    return "nothing" if value is None else "an empty mapping" if value == {} else f"a {type(value).__name__}"


def reference_sets(
    sets: Mapping[str, Rows],
    *,
    loss: Loss | Callable[[Any, Any], Tensor] = "ce",
    tokenizer: Any = None,
    samples: int | None = 200,
    max_tokens: int = 512,
    beta: float = 0.1,
    device: str = "cpu",
) -> list[ReferenceSet]:
    r"""Makes batches and losses of what a user gave.

    Args:
        sets: Name -> rows: texts, or mappings with ``text``, with ``prompt`` and ``completion``, or with ``prompt``,
            ``chosen`` and ``rejected``. For a callable loss: name -> batches, each handed over as it is.
        loss: "ce": the mean over all scored tokens (the completion's, or all of a text; of pairs both answers, as the
            released code has it). "preference": :math:`-\log\sigma(\beta(\log\pi(chosen) - \log\pi(rejected)))`, the
            mean over pairs. Or a function of the model and a batch that returns a scalar; a set's loss is the mean.
        tokenizer: The model's; a callable needs none.
        samples: At most so many rows of each set, evenly spread over it.
        max_tokens: Longer rows are cut there, at their end.
        beta: Of "preference".
        device: The kind of device, which says how many tokens a batch may have.
    Raises:
        DataError: A set cannot be used; it and its row are named.
    """
    check_sets(sets, loss)
    if callable(loss):
        return [ReferenceSet(name, rows, loss, 1 / len(rows)) for name, rows in sets.items()]
    if tokenizer is None:
        raise DataError("reference sets of texts need a tokenizer: bind(model, Host(tokenizer=…)), or a callable loss")
    made = []
    for name, rows in sets.items():
        units = _units(
            [_row(row) for row in spread(rows, samples)], tokenizer, max_tokens, f"reference set {name!r} row"
        )
        tokens = sum(len(one.tokens) - one.start for unit in units for one in unit)
        batches = [_batch(group) for group in _groups(units, BATCH_TOKENS.get(device, DEVICE_BATCH_TOKENS))]
        if loss == "ce":
            made.append(ReferenceSet(name, batches, summed_ce, 1 / tokens))
        else:
            made.append(ReferenceSet(name, batches, _Preference(beta), 1 / len(units)))
    return made


def spread(rows: Rows, most: int | None) -> list[Any]:
    """At most so many rows, evenly spread: many files are sorted."""
    count = len(rows) if most is None else min(most, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]


def _row(row: Any) -> Mapping[str, str]:
    """A row that was checked, without fields that do not count."""
    return {"text": row} if isinstance(row, str) else {key: row[key] for key in _form(row) or ()}


def _units(rows: Sequence[Mapping[str, str]], tokenizer: Any, most: int, where: str) -> list[list[Scored]]:
    """What belongs together: one text, one completion, or the two answers of a pair."""
    eos = tokenizer.eos_token or ""

    def ended(text: str) -> str:
        return text.removesuffix(eos).rstrip() if eos and text.endswith(eos) else text

    last = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    units: list[list[Scored]] = []
    for number, row in enumerate(rows):
        if "prompt" in row:
            answers = [ended(row[key]) for key in ("completion", "chosen", "rejected") if key in row]
            (unit,) = encode_answers(tokenizer, [(row["prompt"], answers)], eos=bool(last), where=f"{where} {number},")
        else:
            tokens = (*encode(tokenizer, [ended(row["text"])])[0], *last)
            unit = [Scored(tokens, 1, f"{where} {number}")]
        units.append([Scored(one.tokens[:most], one.start, one.where) for one in unit])
        for one in units[-1]:
            if len(one.tokens) <= one.start:
                raise DataError(f"{where} {number}: nothing is left to score within max_tokens = {most}")
    return units


def _groups(units: list[list[Scored]], most: int) -> Iterator[list[Scored]]:
    """Units of like length, as many as the budget allows."""
    group: list[Scored] = []
    longest = 0
    for unit in sorted(units, key=lambda unit: max(len(one.tokens) for one in unit)):
        longest = max(len(one.tokens) for one in unit)
        if group and (len(group) + len(unit)) * longest > most:
            yield group
            group = []
        group += unit
    yield group


def _batch(group: Sequence[Scored]) -> TokenBatch:
    ids = pad_sequence([torch.tensor(one.tokens[:-1]) for one in group], batch_first=True)
    mask = pad_sequence([torch.ones(len(one.tokens) - 1, dtype=torch.long) for one in group], batch_first=True)
    places = [
        (row, at - 1, one.tokens[at]) for row, one in enumerate(group) for at in range(one.start, len(one.tokens))
    ]
    rows, columns, targets = torch.tensor(places).unbind(1)
    return TokenBatch(ids, mask, rows, columns, targets)


def summed_ce(model: Any, batch: TokenBatch) -> Tensor:
    """The negative log-likelihood of all scored tokens, summed."""
    return -log_likelihoods(model, batch).sum()


@dataclass(frozen=True)
class _Preference:
    beta: float

    def __call__(self, model: Any, batch: TokenBatch) -> Tensor:
        """Rows alternate: chosen, rejected."""
        likelihoods = log_likelihoods(model, batch)
        sums = likelihoods.new_zeros(len(batch.input_ids)).index_add(0, batch.rows.to(likelihoods.device), likelihoods)
        return -logsigmoid(self.beta * (sums[0::2] - sums[1::2])).sum()


def log_likelihoods(model: Any, batch: TokenBatch) -> Tensor:
    """Of every scored token, ``(scored,)``."""
    device = next(model.parameters()).device
    inputs = {"input_ids": batch.input_ids.to(device), "attention_mask": batch.mask.to(device), "use_cache": False}
    logits, _ = read(model, batch.rows.to(device), batch.columns.to(device), **inputs)
    return -cross_entropy(logits.float(), batch.targets.to(logits.device), reduction="none")
