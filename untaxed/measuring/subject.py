"""A model under measurement, with everything that its measures share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .batching import LOGIT_ENTRIES, Batch, Scored, batches, context_length
from .encoding import Remembered
from .forward import logits_at
from .sampling import Completions, sample
from .suite import Split, Suite


class Subject:
    """One model being measured.

    Args:
        model: A causal language model of transformers, on any device.
        tokenizer: Its tokenizer; keep one object for a whole study, since encoded items are remembered with it.
        suite: What is measured and how texts are drawn.
        initial: The subject that drift is measured from; None: this one is initial itself.
    """

    def __init__(self, model: Any, tokenizer: Any, suite: Suite, initial: Subject | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.suite = suite
        self.initial = self if initial is None else initial
        self._completions: dict[Split, Completions] = {}
        self._sample_batches: dict[Split, list[Batch]] = {}
        self._sample_logits: dict[Split, list[Tensor]] = {}

    @property
    def vocabulary(self) -> int:
        """The length of a row of logits."""
        return int(self.model.config.get_text_config().vocab_size)

    @torch.no_grad()  # not inference mode: a buffer that a model renews in its forward must stay usable in training
    def logits(self, batch: Batch) -> Tensor:
        """The logits at the batch's scored places, ``(scored, vocabulary)``."""
        return logits_at(self.model, batch)

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

    def remembered(self, memory: Remembered, split: Split, encoded: Callable[[Any], list[Scored]]) -> list[Batch]:
        """The batches of a measure's items, encoded once per tokenizer, kind of model and split."""
        key = (split, self.vocabulary, self.context, self.device.type)
        return memory.get(self.tokenizer, key, lambda: self.batches(encoded(self.tokenizer)))

    def completions(self, split: Split) -> Completions:
        """What the model writes after the suite's prompts; drawn once, always with the suite's seed."""
        if split not in self._completions:
            prompts = self.suite.prompts[split]
            self._completions[split] = sample(self.model, self.tokenizer, prompts, self.suite.sampling)
        return self._completions[split]

    def read_samples(self, split: Split) -> Iterator[tuple[Batch, Tensor]]:
        """Batches of the completions, every drawn token scored, with this model's logits there.

        Few logits are kept, since drift asks for them again with every model; many are computed anew each time.
        """
        if split not in self._sample_batches:
            self._sample_batches[split] = self.batches(self.completions(split).scored())
        batches = self._sample_batches[split]
        scored = sum(len(batch.targets) for batch in batches)
        if scored * self.vocabulary > LOGIT_ENTRIES:
            yield from ((batch, self.logits(batch)) for batch in batches)
            return
        if split not in self._sample_logits:
            self._sample_logits[split] = [self.logits(batch) for batch in batches]
        yield from zip(batches, self._sample_logits[split], strict=True)
