"""What the drift meter keeps of the initial model: samples that it wrote, and its logits at their tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import divergence
from ..errors import DataError, StoreError, Unsupported
from ..measuring import Completions, Sampling, own_precision, undisturbed
from ..measuring.batching import Batch, batches, context_length
from ..measuring.encoding import encode_prompts
from ..measuring.forward import logits_at, pieces
from ..measuring.sampling import check_prompts, sample
from ..weights import reshard
from ._guards import say

Conversation = Sequence[Mapping[str, Any]]
MOST_BYTES = 2**32  # of the initial model's logits, kept in main memory and in every checkpoint


class InitialSamples:
    """Samples of the initial model and its logits at every drawn token; the model itself is not kept.

    Args:
        initial: Where they come from.
        policy: What is compared with it later; may be the same object.
        tokenizer: Of both.
        prompts: Texts, one a sample.
        sampling: How they are drawn.

    Attributes:
        prompts: The texts.
    Raises:
        DataError: A prompt does not fit into the context.
        Unsupported: The two models have different vocabularies.
    """

    def __init__(self, initial: Any, policy: Any, tokenizer: Any, prompts: Sequence[str], sampling: Sampling) -> None:
        self.prompts = tuple(prompts)
        self._ids = tuple(map(tuple, encode_prompts(tokenizer, prompts)))
        self._width = sampling.max_new_tokens
        self._policy = policy
        check_prompts(self._ids, context_length(policy), sampling)
        if vocabulary(initial) != vocabulary(policy):
            raise Unsupported(
                f"initial has a vocabulary of {vocabulary(initial)}, the policy of {vocabulary(policy)}; drift "
                "compares distributions over one vocabulary"
            )
        with apart(initial, tokenizer), _beside(initial, policy):
            self._drawn = sample(initial, tokenizer, prompts, sampling)
            self._order = _Order(policy, self._drawn)
            self._logits = torch.empty(0)
            for batch, places in self._order:
                part = logits_at(initial, batch).cpu()
                if not len(self._logits):
                    self._logits = part.new_empty(len(self._order), part.shape[1])
                self._logits[places] = part

    @property
    def tokens(self) -> int:
        """How many tokens were drawn, the ends of texts included: what token means are taken over."""
        return len(self._order)

    def compare(self) -> dict[str, float]:
        """Token means on the samples: KL(initial ‖ policy), exact over the vocabulary, and the policy's entropy."""
        kl, entropy = torch.zeros(2, dtype=torch.float64)
        for batch, places in self._order:
            logits = logits_at(self._policy, batch)
            for p, q in pieces(self._logits[places].to(logits.device), logits):
                kl += divergence.token_kl(p, q).sum().cpu()
                entropy += divergence.entropy(q).sum().cpu()
        return {"forward_kl": kl.item() / self.tokens, "entropy": entropy.item() / self.tokens}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors themselves and a digest of the prompts' tokens, for a saved state."""
        digest = hashlib.sha256(json.dumps(self._ids).encode()).digest()
        return {
            "prompts": torch.tensor(list(digest), dtype=torch.uint8),
            "token_ids": self._drawn.token_ids,
            "mask": self._drawn.mask,
            "logits": self._logits,
        }

    def check(self, saved: Mapping[str, Tensor]) -> None:
        """Raises `StoreError` unless these are tensors that were saved with the same prompts."""
        ours = self.tensors()
        shapes = {name: tuple(tensor.shape) for name, tensor in ours.items()}
        wanted = (len(self._ids), self._width)
        fits = saved.keys() == shapes.keys() and all(tuple(saved[k].shape) == wanted for k in ("token_ids", "mask"))
        if not fits or tuple(saved["logits"].shape) != (int(saved["mask"].sum()), shapes["logits"][1]):
            raise StoreError(
                f"the saved drift meter does not hold {wanted[0]} samples of at most {wanted[1]} tokens with their "
                "logits; give a state that was saved with these prompts"
            )
        if not torch.equal(saved["prompts"].cpu(), ours["prompts"]):
            raise StoreError(
                "the saved drift meter holds samples after other prompts, as many; give a state that was saved with "
                "these prompts"
            )

    def assign(self, saved: Mapping[str, Tensor]) -> None:
        """Takes up saved tensors that `check` lets pass."""
        nothing = ("",) * len(self._ids)  # nobody reads the samples' texts
        self._drawn = Completions(self.prompts, nothing, self._ids, saved["token_ids"], saved["mask"].bool())
        self._logits = saved["logits"]
        self._order = _Order(self._policy, self._drawn)


class _Order:
    """The batches of some samples, each with where its tokens stand in the order sample by sample, token by token.

    That order does not depend on batches, which are others on other devices.
    """

    def __init__(self, model: Any, drawn: Completions) -> None:
        share = not getattr(model, "_is_stateful", False)  # recurrent states cannot be handed to several rows
        device = next(model.parameters()).device.type
        self._batches = batches(drawn.scored(), vocabulary=vocabulary(model), device=device, share=share)
        owners = torch.cat([batch.owners for batch in self._batches])
        places = torch.empty_like(owners)
        places[owners.argsort(stable=True)] = torch.arange(len(owners))
        self._places = places.split([len(batch.owners) for batch in self._batches])

    def __iter__(self) -> Iterator[tuple[Batch, Tensor]]:
        return zip(self._batches, self._places, strict=True)

    def __len__(self) -> int:
        return sum(map(len, self._places))


def distinct(rows: Sequence[Sequence[int]], n: int) -> float | None:
    """Different n-grams over all n-grams of some token rows; None where no row has n tokens.

    Example:
        >>> distinct([[1, 2, 1, 2], [1, 2]], 2)  # (1, 2) three times, (2, 1) once
        0.5
    """
    grams = [tuple(row[at : at + n]) for row in rows for at in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def as_text(tokenizer: Any, prompt: str | Conversation) -> str:
    """A prompt as the text that the model goes on from: a conversation through the tokenizer's chat template."""
    if isinstance(prompt, str):
        return prompt
    if getattr(tokenizer, "chat_template", None) is None:
        raise DataError("a prompt is a conversation, and the tokenizer has no chat template; give prompts as texts")
    text: str = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
    put_anyway = tokenizer.bos_token and list(tokenizer("")["input_ids"])[:1] == [tokenizer.bos_token_id]
    return text.removeprefix(tokenizer.bos_token) if put_anyway else text  # else it would stand there twice


def that_fit(
    model: Any, tokenizer: Any, prompts: Sequence[str | Conversation], new_tokens: int
) -> list[str | Conversation]:
    """The prompts that fit into the model's context with so many new tokens; the others are counted in the log.

    Raises:
        Unsupported: None fits.
    """
    limit = context_length(model)
    if limit is None or tokenizer is None:
        return list(prompts)
    ids = encode_prompts(tokenizer, [as_text(tokenizer, one) for one in prompts])
    kept = [one for one, tokens in zip(prompts, ids, strict=True) if len(tokens) + new_tokens <= limit]
    long = f"too long for the context of {limit} tokens with {new_tokens} new ones"
    if not kept:
        raise Unsupported(f"all {len(prompts)} held-out prompts are {long}; give shorter ones, or lower max_new_tokens")
    if len(kept) < len(prompts):
        say(f"drift meter: {len(prompts) - len(kept)} of {len(prompts)} held-out prompts are left out, {long}")
    return kept


def vocabulary(model: Any) -> int:
    """The length of a row of a model's logits."""
    return int(model.config.get_text_config().vocab_size)


def check_model(model: Any) -> None:
    """Raises `Unsupported` where there are no logits of next tokens to read."""
    head = getattr(model, "get_output_embeddings", lambda: None)()  # a classifier of texts has the function, no head
    if head is None or not hasattr(getattr(model, "config", None), "get_text_config"):
        raise Unsupported(f"the drift meter reads the logits of a causal language model, got {type(model).__name__}")


def several() -> bool:
    """True where several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def apart(model: Any, tokenizer: Any) -> Iterator[None]:
    """Measures without a trace.

    FSDP2 keeps the outermost weights gathered after a forward pass; a reset, which writes the shards, would not reach
    the next one. So they are let go.
    """
    with undisturbed(model, tokenizer), own_precision(model), torch.no_grad():
        try:
            yield
        finally:
            reshard(model)


@contextmanager
def _beside(initial: Any, policy: Any) -> Iterator[None]:
    """Lends a model the policy's device."""
    own, wanted = (next(model.parameters()).device for model in (initial, policy))
    if own == wanted:
        yield
        return
    initial.to(wanted)
    try:
        yield
    finally:
        initial.to(own)


def check_size(tokens: int, words: int) -> None:
    """Raises `Unsupported` where the logits at so many tokens of such a vocabulary are too many to be kept."""
    if (size := tokens * words * 4) > MOST_BYTES:
        raise Unsupported(
            f"the drift meter would keep the initial model's logits at {tokens} tokens of a vocabulary of {words}: "
            f"{size / 2**30:.1f} GiB, more than {MOST_BYTES / 2**30:.0f}; give fewer prompts or samples, or lower "
            "max_new_tokens"
        )
