"""Greedy generation: the most probable token again and again, until a stop text, the end of text, or a limit.

1. Prompts of about one length make a batch; what all of them begin with (the worked examples) is read once.
2. Every step reads one token a row. A row is done at an end-of-text token, or where a stop text appears in it.
3. Once half of a batch's rows are done, the others go on without them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import RunFailed, Unsupported
from .forward import positions_of, read
from .journal import NOTHING_KEPT, Journal

CACHE_TOKENS = {"cpu": 16384}  # tokens whose keys and values are held at once
DEVICE_CACHE_TOKENS = 131072  # on an accelerator
FEWEST_SHARED = 8  # tokens at the start of all prompts of a batch that are worth a pass of their own

Ids = Sequence[int]


@dataclass(frozen=True)
class Decoding:
    """How answers are written.

    Attributes:
        max_new_tokens: At most so many tokens.
        stop: Texts at which an answer ends; they are no part of it. White space before the answer does not end it:
            many models put an empty line there.
    """

    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()


@torch.no_grad()
def greedy(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Ids],
    decoding: Decoding,
    *,
    where: str,
    journal: Journal = NOTHING_KEPT,
) -> list[str]:
    """Writes the answer to every prompt.

    Args:
        model: A causal language model of transformers, in evaluation mode.
        tokenizer: Its tokenizer.
        prompts: The prompts' tokens, at least one each; with the answer they fit into the context.
        decoding: How.
        where: Names the prompts in errors, which add the number: "gsm8k test item".
        journal: Notes the answers batch by batch.
    Returns:
        The answers as texts, without special tokens, cut at the first stop text.
    Raises:
        RunFailed: A logit is not a number.
        Unsupported: The model has no key-value cache.
    """
    answers = [""] * len(prompts)
    device = next(model.parameters()).device.type
    most = CACHE_TOKENS.get(device, DEVICE_CACHE_TOKENS)
    for chosen in _batches(prompts, decoding.max_new_tokens, most):
        asked = [prompts[at] for at in chosen]
        writer = _Writer(model, tokenizer, decoding, f"{where} {{}}", chosen)
        written = journal.once(partial(_about, asked, decoding, ends(model, tokenizer)), partial(writer.write, asked))
        for at, text in zip(chosen, written, strict=True):
            answers[at] = text
    return answers


def _about(prompts: Sequence[Ids], decoding: Decoding, last: Collection[int]) -> list[Any]:
    """All that the answers of a batch depend on beside the model."""
    return ["written", asdict(decoding), sorted(last), [list(ids) for ids in prompts]]


def _batches(prompts: Sequence[Ids], new: int, most_tokens: int) -> Iterator[list[int]]:
    """Positions of prompts that are written together, the longest first, so that what does not fit shows at once."""
    batch: list[int] = []
    for at in sorted(range(len(prompts)), key=lambda at: -len(prompts[at])):
        if batch and (len(batch) + 1) * (len(prompts[batch[0]]) + new) > most_tokens:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop texts; those in white space at its beginning do not count.

    Example:
        >>> cut("42\\n\\nQuestion: and", ["Question:", "\\n\\n"])
        '42'
        >>> cut("\\n\\n42\\nand", ["\\n"]).strip()
        '42'
    """
    begins = len(text) - len(text.lstrip())
    found = [at for at in (text.find(one, begins) for one in stop) if at >= 0]
    return text[: min(found)] if found else text


def ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text, for the tokenizer or for the model's own generation."""
    config = getattr(model, "generation_config", None)
    named = [tokenizer.eos_token_id, getattr(config, "eos_token_id", None)]
    lists = [one if isinstance(one, list | tuple) else [one] for one in named]
    return frozenset(int(token) for one in lists for token in one if token is not None)


@dataclass
class _Writer:
    """The answers to one batch of prompts."""

    model: Any
    tokenizer: Any
    decoding: Decoding
    where: str
    numbers: Sequence[int]
    rows: list[int] = field(default_factory=list)  # the prompts that are not done, by position in the batch

    def write(self, prompts: Sequence[Ids]) -> list[str]:
        last = ends(self.model, self.tokenizer)
        written: list[list[int]] = [[] for _ in prompts]
        self.rows = list(range(len(prompts)))
        new, mask, cache = self._begin(prompts)
        done: set[int] = set()
        for _ in range(self.decoding.max_new_tokens):
            tokens, cache = self._step(new, mask, cache)
            for row, token in zip(self.rows, tokens.tolist(), strict=True):
                if row not in done:
                    written[row].append(token)
                    if token in last or self._stopped(written[row]):
                        done.add(row)
            if len(done) == len(prompts):
                break
            new, mask = tokens.unsqueeze(1), torch.cat([mask, torch.ones_like(tokens).unsqueeze(1)], dim=1)
            going = [at for at, row in enumerate(self.rows) if row not in done]
            if 2 * len(going) <= len(self.rows):
                new, mask = new[going], mask[going]
                cache.batch_select_indices(torch.tensor(going, device=new.device))
                self.rows = [self.rows[at] for at in going]
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        texts: list[str] = self.tokenizer.batch_decode(written, **options)
        return [cut(text, self.decoding.stop) for text in texts]

    def _begin(self, prompts: Sequence[Ids]) -> tuple[Tensor, Tensor, Any]:
        """What is read first: the prompts padded on the left, after what they all begin with."""
        device = next(self.model.parameters()).device
        shared = _shared(prompts) if _shares(self.model) else 0
        rests = [list(ids[shared:]) for ids in prompts]
        longest = max(map(len, rests))
        new = torch.tensor([[0] * (longest - len(ids)) + ids for ids in rests], device=device)
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rests], device=device)
        if not shared:
            return new, mask, None
        first = torch.tensor([list(prompts[0][:shared])], device=device)
        _, cache = self._read(first, torch.ones_like(first), None)
        cache.batch_select_indices(torch.zeros(len(prompts), dtype=torch.long, device=device))
        return new, torch.cat([torch.ones(len(prompts), shared, dtype=mask.dtype, device=device), mask], dim=1), cache

    def _read(self, new: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
        rows = torch.arange(len(new), device=new.device)
        positions = positions_of(mask)[:, -new.shape[1] :]
        inputs = {"input_ids": new, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        logits, output = read(self.model, rows, torch.full_like(rows, -1), use_cache=True, **inputs)
        cache = getattr(output, "past_key_values", None)
        if cache is None:
            name = type(self.model).__name__
            raise Unsupported(f"{name} keeps no key-value cache, which generation goes on from")
        return logits, cache

    def _step(self, new: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
        logits, cache = self._read(new, mask, cache)
        best, tokens = logits.max(-1)  # of several values, one that is not a number counts as the greatest
        broken = best.isnan().nonzero().flatten().tolist()
        if broken:
            which = self.where.format(self.numbers[self.rows[broken[0]]])
            raise RunFailed(f"{which}: a logit is not a number: the model has diverged")
        return tokens, cache

    def _stopped(self, tokens: list[int]) -> bool:
        """Whether a stop text has just appeared: every token but special ones stands for a byte at least."""
        if not self.decoding.stop:
            return False
        most = max(len(one.encode()) for one in self.decoding.stop) + 4
        tail = self.tokenizer.decode(tokens[-most:], skip_special_tokens=True)
        if len(tokens) <= most:
            tail = tail.lstrip()
        return any(one in tail for one in self.decoding.stop)


def _shares(model: Any) -> bool:
    """Whether a beginning may be read once and padding follow it: recurrent states and sliding windows see padding."""
    config = model.config.get_text_config()
    return not getattr(model, "_is_stateful", False) and getattr(config, "sliding_window", None) is None


def _shared(prompts: Sequence[Ids]) -> int:
    """How many tokens all prompts begin with, of which at least one of each is left; 0 where it is not worth it."""
    least = min(map(len, prompts)) - 1
    alike = next((at for at in range(least) if len({ids[at] for ids in prompts}) > 1), least)
    return alike if alike >= FEWEST_SHARED and len(prompts) > 1 else 0
