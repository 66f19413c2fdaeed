"""Prompts and preference pairs: read, or sampled from `initial` and ranked by a reward."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import fingerprint, load_model, load_tokenizer
from ..errors import DataError, SpecError
from ..measuring.rewards import rewards_of
from ..measuring.sampling import sample
from ..measuring.suite import Reward, Sampling
from ..rows import Row, RowsSource, fraction, read_rows, split_by_hash
from ..training.data import COLUMNS, pair_check
from .cache import cached, content_key
from .sources import Preferences, Prompts, Sampled

log = logging.getLogger("untaxed.prepare")


def prompts_by_split(source: Prompts) -> dict[str, list[str]]:
    """Reads prompts and divides them by hash into train, validation and test, in an order that is a hash's too.

    Equal prompts count once.

    Raises:
        DataError: A row has no field ``prompt``, or a part is empty.
    """

    def check(row: Row) -> None:
        if not isinstance(row.get("prompt"), str):
            raise ValueError("expected a text in the field 'prompt'; name the column by `columns: {prompt: …}`")

    texts = (row["prompt"] for row in read_rows(source, check))
    openings = (_opening(text, source.opening_words) for text in texts)
    unique = {source.template.replace("{prompt}", text) for text in openings if text}
    # Files are often sorted by label or length: an order by hash makes the first prompts as good as any.
    ordered = sorted(unique, key=lambda prompt: fraction(prompt, seed=1))
    parts = split_by_hash([{"prompt": prompt} for prompt in ordered], "prompt")
    for name, rows in parts.items():
        if not rows:
            raise DataError(f"{source.label}: no prompt falls into the {name} part; give more rows")
    return {name: [row["prompt"] for row in rows] for name, rows in parts.items()}


def _opening(text: str, words: int | None) -> str | None:
    """The first words of a text; None for a text that ends there, since nothing would be left to write."""
    if words is None:
        return text
    split = text.split()
    return " ".join(split[:words]) if len(split) > words else None


def preference_pairs(
    source: Preferences, prompts: Sequence[str], proxy: Reward, initial: Path, cache: Path
) -> list[Row]:
    """Reads preference pairs, or samples them from `initial` after `prompts` and ranks them by `proxy`.

    Raises:
        DataError: `training.data.pair_check` refuses a row, or no pair is left.
    """
    if source.sampled is None:
        return [{name: row[name] for name in COLUMNS} for row in read_rows(source, pair_check())]
    groups = _sampled(source.sampled, prompts, initial, cache)
    pairs = rank(groups, proxy, min_gap=source.sampled.min_gap)
    log.info("preference pairs: %d of %d prompts (the others' samples tie)", len(pairs), len(groups))
    if not pairs:
        raise DataError("data.preferences.sampled: the proxy reward tells no two samples of a prompt apart")
    return pairs


def _sampled(spec: Sampled, prompts: Sequence[str], initial: Path, cache: Path) -> list[Row]:
    """Rows with ``prompt`` and its ``completions``; only these are kept in the cache, so any reward may rank them."""
    used = list(prompts)[: spec.prompts]
    if spec.prompts and len(used) < spec.prompts:
        raise SpecError(f"data.preferences.sampled.prompts is {spec.prompts}, but there are {len(used)} train prompts")
    settings = spec.model_dump(mode="json", exclude={"prompts", "min_gap"})
    key = content_key("samples", [fingerprint(initial), used, settings])
    what = f"{len(used) * spec.per_prompt} samples of initial"
    file = cached(cache, f"{key}.jsonl", lambda path: _draw(spec, used, initial, path), what=what)
    return read_rows(RowsSource(path=str(file)))


def _draw(spec: Sampled, prompts: Sequence[str], initial: Path, path: Path) -> None:
    sampling = Sampling(max_new_tokens=spec.max_new_tokens, temperature=spec.temperature, seed=spec.seed)
    model: Any = load_model(initial)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    repeated = [prompt for prompt in prompts for _ in range(spec.per_prompt)]
    drawn = sample(model, load_tokenizer(initial), repeated, sampling).texts
    with path.open("w", encoding="utf-8") as stream:
        for number, prompt in enumerate(prompts):
            texts = drawn[number * spec.per_prompt : (number + 1) * spec.per_prompt]
            stream.write(json.dumps({"prompt": prompt, "completions": texts}) + "\n")


def rank(groups: Sequence[Row], proxy: Reward, *, min_gap: float = 0.0) -> list[Row]:
    """Pairs the best completion of every prompt with its worst.

    Args:
        groups: Rows with ``prompt`` and ``completions``.
        proxy: What ranks.
        min_gap: Pairs whose rewards are not further apart are left out.

    Example:
        >>> rank([{"prompt": "It", "completions": ["is", "is good"]}], lambda prompts, texts: [len(t) for t in texts])
        [{'prompt': 'It', 'chosen': 'is good', 'rejected': 'is'}]
    """
    flat = [(str(group["prompt"]), str(text)) for group in groups for text in group["completions"]]
    values = iter(rewards_of("proxy", proxy, [prompt for prompt, _ in flat], [text for _, text in flat]))
    pairs = []
    for group in groups:
        scored = [(next(values), text) for text in group["completions"]]
        best, worst = max(scored, key=lambda pair: pair[0]), min(scored, key=lambda pair: pair[0])
        if best[0] - worst[0] > min_gap and worst[1].strip():
            pairs.append({"prompt": group["prompt"], "chosen": best[1], "rejected": worst[1]})
    return pairs
