"""A model under measurement, with everything that its measures share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from .batching import LOGIT_ENTRIES, Batch, Scored, batches, context_length
from .encoding import Remembered, encode_prompts
from .forward import log_probs, logits_at
from .generating import Decoding, greedy
from .journal import NOTHING_KEPT, Journal
from .sampling import Completions, sample
from .suite import PromptSet, Split, Suite

Sampled = tuple[PromptSet, Split]

TOO_LONG = "too long"  # begins the note on items that were left out


@dataclass(frozen=True)
class Fitting:
    """A measure's items that fit into a model's context.

    Attributes:
        kept: Their positions among all items, in order.
        items: How many there are in all.
        batches: What is scored of those that fit; owners count through what is scored, item by item.
    """

    kept: tuple[int, ...]
    items: int
    batches: list[Batch]


class Subject:
    """One model being measured.

    Args:
        model: A causal language model of transformers, on any device.
        tokenizer: Its tokenizer; keep one object for a whole study, since encoded items are remembered with it.
        suite: What is measured and how texts are drawn.
        initial: The subject that drift is measured from; None: this one is initial itself.
        journal: Notes what every batch gave.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        suite: Suite,
        initial: Subject | None = None,
        journal: Journal = NOTHING_KEPT,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.suite = suite
        self.initial = self if initial is None else initial
        self.journal = journal
        self._completions: dict[Sampled, Completions] = {}
        self._sample_batches: dict[Sampled, list[Batch]] = {}
        self._sample_logits: dict[Sampled, dict[int, Tensor]] = {}
        self._written: dict[Hashable, tuple[list[str], tuple[int, ...]]] = {}
        self._notes: list[str] = []

    @property
    def vocabulary(self) -> int:
        """The length of a row of logits."""
        return int(self.model.config.get_text_config().vocab_size)

    @torch.no_grad()  # not inference mode: a buffer that a model renews in its forward must stay usable in training
    def logits(self, batch: Batch) -> Tensor:
        """The logits at the batch's scored places, ``(scored, vocabulary)``."""
        return logits_at(self.model, batch)

    def per_token(self, batch: Batch, what: str, compute: Callable[[], Tensor]) -> Tensor:
        """A number for every scored token of a batch, ``(scored,)``; what the journal has is not computed again.

        Args:
            batch: What is read.
            what: Names the number; the same name means the same computation.
            compute: Returns the numbers.
        """
        return self.journal.once(lambda: [what, self.initial.journal.of, batch.content()], compute)

    def log_probs(self, batch: Batch) -> Tensor:
        """The log-probability of every scored token of a batch, ``(scored,)``."""
        return self.per_token(batch, "log_probs", lambda: log_probs(self.logits(batch), batch.targets))

    @property
    def context(self) -> int | None:
        """How many tokens the model can read, where its config says."""
        return context_length(self.model)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def batches(self, items: Sequence[Scored]) -> list[Batch]:
        """The items in batches that fit this model; an item longer than its context is a `DataError`."""
        share = not getattr(self.model, "_is_stateful", False)  # recurrent states cannot be handed to several rows
        return batches(items, vocabulary=self.vocabulary, limit=self.context, device=self.device.type, share=share)

    def fitting(
        self, memory: Remembered, split: Split, encoded: Callable[[Any], list[list[Scored]]], name: str
    ) -> Fitting:
        """What a measure scores, encoded once per tokenizer, kind of model and split.

        Items longer than the context are left out, counted and named in the result, never cut.

        Args:
            memory: The measure's.
            split: Which of its items.
            encoded: Returns what is scored of every item.
            name: The measure's, for errors.
        Raises:
            DataError: No item fits.
        """
        key = (split, self.vocabulary, self.context, self.device.type)
        made: Fitting = memory.get(self.tokenizer, key, lambda: self._fitting(encoded(self.tokenizer)))
        self.left_out(made.kept, made.items, f"{name} {split}")
        return made

    def _fitting(self, items: list[list[Scored]]) -> Fitting:
        lengths = [max(len(one.tokens) - 1 for one in item) for item in items]  # the last token is never read
        kept = self._that_fit(lengths)
        return Fitting(kept, len(items), self.batches([one for at in kept for one in items[at]]))

    def _that_fit(self, lengths: Sequence[int]) -> tuple[int, ...]:
        limit = self.context
        return tuple(at for at, length in enumerate(lengths) if limit is None or length <= limit)

    def left_out(self, kept: Sequence[Any], items: int, name: str) -> None:
        """Notes how many items are longer than the context; that none is kept is a `DataError`."""
        if items and not kept:
            raise DataError(f"{name}: all {items} items are longer than the model's context of {self.context} tokens")
        if len(kept) < items:
            self.note(f"{TOO_LONG}: {items - len(kept)} of {items} left out")

    def note(self, text: str) -> None:
        """Says something about the measure that is being scored; it stands beside its number."""
        self._notes.append(text)

    def take_notes(self) -> list[str]:
        """What has been noted since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def written(self, prompts: Sequence[str], decoding: Decoding, name: str) -> tuple[list[str], tuple[int, ...]]:
        """What the model writes after prompts by greedy decoding, and the positions of the prompts that fit.

        A prompt that does not fit into the context with ``max_new_tokens`` is left out, counted and noted. The same
        prompts are written once, however many measures ask.

        Args:
            prompts: As texts; a chat template has been applied already.
            decoding: How.
            name: Names measure and split in errors.
        """
        key = (tuple(prompts), decoding)
        if key not in self._written:
            ids = encode_prompts(self.tokenizer, prompts)
            kept = self._that_fit([len(one) + decoding.max_new_tokens for one in ids])
            fitting = [ids[at] for at in kept]
            texts = greedy(self.model, self.tokenizer, fitting, decoding, where=f"{name} item", journal=self.journal)
            self._written[key] = texts, kept
        texts, kept = self._written[key]
        self.left_out(kept, len(prompts), name)
        return texts, kept

    def completions(self, split: Split, prompts: PromptSet = "prompts") -> Completions:
        """What the model writes after the suite's prompts; drawn once, always with the suite's seed."""
        key = (prompts, split)
        if key not in self._completions:
            given = self.suite.sampled(prompts)[split]
            self._completions[key] = sample(self.model, self.tokenizer, given, self.suite.sampling, self.journal)
        return self._completions[key]

    def sample_batches(self, split: Split, prompts: PromptSet = "prompts") -> list[Batch]:
        """Batches of the completions, every drawn token scored."""
        key = (prompts, split)
        if key not in self._sample_batches:
            self._sample_batches[key] = self.batches(self.completions(split, prompts).scored())
        return self._sample_batches[key]

    def sample_logits(self, split: Split, number: int, prompts: PromptSet = "prompts") -> Tensor:
        """This model's logits at one of `sample_batches`, ``(scored, vocabulary)``.

        Few logits are kept, since drift asks for them again with every model; many are computed anew each time.
        """
        batches = self.sample_batches(split, prompts)
        if sum(len(batch.targets) for batch in batches) * self.vocabulary > LOGIT_ENTRIES:
            return self.logits(batches[number])
        known = self._sample_logits.setdefault((prompts, split), {})
        if number not in known:
            known[number] = self.logits(batches[number])
        return known[number]
