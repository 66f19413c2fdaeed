"""Perplexity of given texts: how surprised a model is by what people wrote, a token, a word or a byte."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ..errors import DataError
from .batching import Scored
from .encoding import Remembered, encode, opening
from .forward import totals
from .subject import Subject
from .suite import Measure, Scores, Split

Unit = Literal["token", "word", "byte"]


def perplexity(
    name: str, texts: Mapping[Split, Sequence[str]], *, max_tokens: int | None = None, unit: Unit = "token"
) -> Measure:
    r"""Perplexity of given texts: how surprised the model is by what people wrote.

    .. math:: \exp\Big(-\frac{1}{N} \sum_{text} \sum_t \log p(x_t | x_{<t})\Big)

    N counts tokens, words (what white space separates) or UTF-8 bytes. Models with other tokenizers can be compared a
    word or a byte; the whole text must then be scored, so its first token is, too, given the beginning-of-text token
    (or, where there is none, the end-of-text token). A token, every token is scored given all before it in its text;
    the first has none before it and is not scored, unless the tokenizer itself puts a beginning-of-text token there.
    A text longer than the model's context is left out and counted, unless ``max_tokens`` says where to stop reading.

    Args:
        name: The measure's name in results.
        texts: The texts of each split.
        max_tokens: Read only so many tokens of each text; None reads all. Only a token.
        unit: What is counted.
    Source: ``word_perplexity`` and ``byte_perplexity`` of lm-evaluation-harness.
    Differs: there a longer text is read in pieces, each of which begins anew.
    """
    memory = Remembered()

    def score(subject: Subject, split: Split) -> Scores:
        def encoded(tokenizer: Any) -> list[list[Scored]]:
            ids = encode(tokenizer, texts[split])
            where = f"{name} {split} text"
            return [[_text(tokenizer, one, max_tokens, unit, f"{where} {at}")] for at, one in enumerate(ids)]

        fitting = subject.fitting(memory, split, encoded, name)
        sums = np.zeros((len(fitting.kept), 2))
        for batch in fitting.batches:
            sums += totals(-subject.log_probs(batch), batch.owners, len(sums))
        if unit != "token":
            sums[:, 1] = [_units(texts[split][at], unit) for at in fitting.kept]
        return sums

    for split, rows in texts.items():
        if not rows:
            raise DataError(f"perplexity {name!r} has no {split} texts")
    if max_tokens is not None and unit != "token":
        raise DataError(f"perplexity {name!r}: `max_tokens` cuts a text, whose {unit}s are counted whole; leave it out")
    return Measure("drift", name, "perplexity", score, unit="perplexity" if unit == "token" else f"perplexity a {unit}")


def _units(text: str, unit: Unit) -> int:
    return len(text.encode()) if unit == "byte" else len(text.split())


def _text(tokenizer: Any, ids: list[int], max_tokens: int | None, unit: Unit, where: str) -> Scored:
    if unit != "token":
        leading = list(tokenizer("")["input_ids"])
        begins = bool(leading) and leading[0] == tokenizer.bos_token_id and ids[:1] == leading[:1]
        ids = ids if begins else opening(tokenizer) + ids
    ids = ids[:max_tokens]
    if len(ids) < 2:
        raise DataError(f"{where}: expected at least two tokens, got {len(ids)}")
    return Scored(tuple(ids), 1, where)
