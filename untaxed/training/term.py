"""One term of the loss while it acts: its texts as tokens, which of them a step reads, what they cost."""

from __future__ import annotations

import hashlib
import json
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..callbacks._state import COUNT, check_state
from ..errors import DataError, StoreError, Unsupported
from ..measuring.batching import context_length
from ..measuring.encoding import encode
from ..sites import LossTerm
from .host import policy

if TYPE_CHECKING:
    from transformers import Trainer

STATE = {
    "texts": ("a digest of the texts", lambda value: isinstance(value, str)),
    "drawn": COUNT,
    "owed": ("a number of tokens", lambda value: isinstance(value, int | float)),
}


@dataclass(frozen=True)
class Part:
    """What one process reads of a term at one micro-batch.

    Attributes:
        input_ids: ``(texts, length)``, padded on the right.
        mask: The same shape, 1 where a token stands.
        rows: ``(places,)`` row of each place that costs something.
        columns: ``(places,)`` its column.
        targets: ``(places,)`` the token that follows there; empty where distributions are compared.
    """

    input_ids: Tensor
    mask: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor

    def read(self, model: Any) -> Tensor:
        """A model's logits at the places, ``(places, vocabulary)``."""
        output = model(input_ids=self.input_ids, attention_mask=self.mask, use_cache=False)
        return output.logits[self.rows, self.columns]


class Term:
    """The live half of a `LossTerm`, bound to one trainer.

    Attributes:
        name: The method's.
        compares: Whether initial's logits are asked for.
        counts: Whether the algorithm's tokens are.
        seen: Sum over this process's places of the step so far, and their number: ``(2,)``, float64.
    """

    def __init__(self, name: str, term: LossTerm, trainer: Trainer) -> None:
        self.name, self.compares, self.counts = name, term.compares, term.share is not None
        self._term, self._trainer = term, trainer
        self._texts = tokens_of(term, trainer)
        self._digest = hashlib.sha256(json.dumps(list(term.texts)).encode()).hexdigest()
        self._drawn = 0  # texts since the start
        self._owed = 0.0  # tokens that a share has still to read
        self._order: tuple[int, list[int]] = (-1, [])  # the epoch, its texts
        self._step: list[int] = []  # texts of the present step, of all processes
        self._weight = 0.0  # of a place's value in the step's loss
        self.seen = torch.zeros(2, dtype=torch.float64, device=trainer.args.device)

    def draw(self, tokens: int | None) -> None:
        """Draws the texts of an optimizer step.

        Args:
            tokens: Of the algorithm's own batches of the step, where a share counts them.
        """
        term = self._term
        if term.share is None:
            assert term.batch_size is not None
            assert term.coefficient is not None
            self._step = [self._next() for _ in range(term.batch_size)]
            self._weight = term.coefficient / sum(map(self._places, self._step))
            return
        assert tokens is not None
        self._owed += term.share / (1 - term.share) * tokens
        self._step = []
        while self._owed > 0:
            self._step.append(self._next())
            self._owed -= len(self._texts[self._step[-1]])
        self._weight = 1 / tokens

    def part(self, number: int, of: int) -> Part | None:
        """This process's part of the step at one of its micro-batches; None where no process has any.

        Every process takes part as often as the others do: one without a text reads another's, at no place of it.
        """
        rank, world = self._trainer.args.process_index, self._trainer.args.world_size
        most = -(-len(self._step) // world)  # texts of the process that has most
        own = self._step[rank::world]
        chosen = range(number * most // of, (number + 1) * most // of)
        if not chosen or number >= of:
            return None
        return self._collated([(own[at], True) if at < len(own) else (self._step[0], False) for at in chosen])

    def cost(self, part: Part, other: Tensor | None) -> Tensor:
        """What a part adds to the step's loss: a scalar with a gradient.

        Args:
            part: From `part`.
            other: Initial's logits at its places, where they are compared.
        """
        with own_randomness(self._trainer.args.device):
            logits = part.read(policy(self._trainer))
        values = self._term.value(logits, part.targets if other is None else other)
        self.seen += torch.stack([values.detach().sum().double(), self.seen.new_tensor(len(values))])
        return values.sum() * self._weight

    def state_dict(self) -> dict[str, Any]:
        """Where in its texts it is."""
        return {"texts": self._digest, "drawn": self._drawn, "owed": self._owed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state.

        Raises:
            StoreError: It belongs to other texts.
        """
        check_state(state, STATE, of=f"the loss of {self.name}")
        if state["texts"] != self._digest:
            raise StoreError(f"the saved state of {self.name} belongs to other texts; resume with those it began with")
        self._drawn, self._owed = state["drawn"], state["owed"]

    def _next(self) -> int:
        """The next text of an order that the seed alone decides."""
        epoch, place = divmod(self._drawn, len(self._texts))
        if self._order[0] != epoch:
            order = list(range(len(self._texts)))
            random.Random(f"{self.name} {self._term.seed} {epoch}").shuffle(order)
            self._order = epoch, order
        self._drawn += 1
        return self._order[1][place]

    def _places(self, text: int) -> int:
        return len(self._texts[text]) - (not self.compares)

    def _collated(self, chosen: Sequence[tuple[int, bool]]) -> Part:
        texts = [self._texts[text] for text, _ in chosen]
        length = max(map(len, texts))
        ids = torch.zeros(len(texts), length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        rows: list[int] = []
        columns: list[int] = []
        for row, (text, (number, counts)) in enumerate(zip(texts, chosen, strict=True)):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
            places = self._places(number) if counts else 0
            rows += [row] * places
            columns += range(places)
        at = torch.tensor(rows, dtype=torch.long), torch.tensor(columns, dtype=torch.long)
        targets = ids[at[0], at[1] + 1] if not self.compares else ids.new_empty(0)
        device = self._trainer.args.device
        return Part(*(tensor.to(device) for tensor in (ids, mask, *at, targets)))


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Lets a model draw its dropout, and gives the algorithm's random numbers back: its samples stay what they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def tokens_of(term: LossTerm, trainer: Trainer) -> list[list[int]]:
    """The texts as tokens, each with the end of text where that is to be learned.

    Raises:
        DataError: A text has nothing to read, or all are longer than the context.
        Unsupported: The trainer has no tokenizer.
    """
    processing: Any = getattr(trainer, "processing_class", None)
    tokenizer = getattr(processing, "tokenizer", processing)
    if tokenizer is None:
        raise Unsupported(f"{term.called}s are read as tokens: build the trainer with processing_class=…")
    end = [] if term.compares or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    encoded = [ids + end if ids[-1:] != end else ids for ids in encode(tokenizer, term.texts)]
    least = 1 if term.compares else 2
    for number, ids in enumerate(encoded, start=1):
        if len(ids) < least:
            raise DataError(f"{term.called} {number} has {len(ids)} tokens, at least {least} are needed; leave it out")
    limit = context_length(policy(trainer))
    kept = [ids for ids in encoded if limit is None or len(ids) <= limit]
    if not kept:
        raise DataError(f"{term.called}s are all longer than the model's context of {limit} tokens; cut them yourself")
    if left := len(encoded) - len(kept):
        warnings.warn(
            f"{left} of {len(encoded)} {term.called}s are longer than the model's context of {limit} tokens and are "
            "left out; cut them yourself where they are to be read",
            stacklevel=2,
        )
    return kept
