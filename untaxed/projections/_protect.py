"""From general prompts to what is protected of every layer's input."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError, Unsupported
from ._covariance import Accumulate, Covariances, covariances, texts_of
from ._layers import BLOCKS, Layers, check_layers, linear_layers
from ._settings import check_choices, check_count
from ._subspace import Subspace, Threshold, check_threshold, protected_subspace

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Protect:
    """How protected subspaces are found; the settings that NSPO shares with those who use it in a loop of their own.

    Attributes:
        threshold: How eigenvalues are cut, see `protected_subspace`.
        value: Where; None: the threshold's usual value.
        layers: "blocks", "mlp" or shell patterns, see `linear_layers`.
        samples: At most so many prompts, evenly spread over those given; None: all.
        max_tokens: Prompts are cut there.
        continuations: Tokens that the model itself adds to each prompt, at most; 0: none.
        accumulate: "float32" or "float64": in which precision covariances go on from batch to batch.
        seed: Of the continuations.
    """

    threshold: Threshold = "energy"
    value: float | None = None
    layers: Layers = BLOCKS
    samples: int | None = 1024
    max_tokens: int = 512
    continuations: int = 0
    accumulate: Accumulate = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        check_threshold(self.threshold, self.value)
        check_layers(self.layers)
        check_count("samples", self.samples, none=True)
        check_count("max_tokens", self.max_tokens)
        check_count("continuations", self.continuations, least=0)
        check_count("seed", self.seed, least=0)
        check_choices(accumulate=(self.accumulate, Accumulate))

    def subspaces(self, model: nn.Module, tokenizer: Any, prompts: Sequence[str]) -> dict[str, Subspace]:
        """Layer -> what is protected of its input; layers that are given the same tensor share one.

        Raises:
            DataError: The prompts cannot be used, or are too few for the rank that is asked for.
            Unsupported: No layer has a free direction, or none is chosen.
        """
        check_prompts(prompts)
        if tokenizer is None:
            raise DataError("general prompts need a tokenizer: bind(model, Host(tokenizer=…))")
        layers = linear_layers(model, self.layers)
        count = len(prompts) if self.samples is None else min(self.samples, len(prompts))
        chosen = [prompts[number * len(prompts) // count] for number in range(count)]
        texts = texts_of(
            model,
            tokenizer,
            chosen,
            max_tokens=self.max_tokens,
            continuations=self.continuations,
            seed=self.seed,
        )
        found = covariances(model, layers, texts, accumulate=self.accumulate)
        self._check_tokens(found)
        cut = {owner: self._cut(owner, sums, found.tokens) for owner, sums in found.sums.items()}
        _judge(cut, found.owners)
        return {name: cut[found.owners[name]] for name in layers}

    def _cut(self, layer: str, sums: Tensor, tokens: int) -> Subspace:
        try:
            return protected_subspace(
                sums, threshold=self.threshold, value=self.value, tokens=tokens, products=torch.float32
            )
        except ValueError as error:
            raise DataError(f"layer {layer!r}: {error}") from None

    def _check_tokens(self, found: Covariances) -> None:
        """Inputs that no text has count as free: too few texts protect too little."""
        widest = max(sums.shape[0] for sums in found.sums.values())
        asked = None
        if self.threshold == "rank":
            asked = int(self.value or 0)
        elif self.threshold == "free_share":
            asked = widest - max(1, round(float(self.value or 0) * widest))
        if asked is not None:
            if found.tokens >= asked:
                return
            raise DataError(
                f"the general prompts have {found.tokens} tokens, fewer than the {asked} directions that are to be "
                "protected; give more prompts, or ask for fewer"
            )
        if found.tokens < widest:
            warnings.warn(
                f"the general prompts have {found.tokens} tokens and span at most so many of a layer's {widest} input "
                "directions: what they leave out counts as free; give more prompts",
                stacklevel=5,
            )


def check_prompts(prompts: Any) -> None:
    """Raises `DataError` unless these are texts, at least one."""
    if isinstance(prompts, str | bytes | Mapping) or not hasattr(prompts, "__len__"):
        raise DataError(f"general prompts must be a list of texts, got {type(prompts).__name__}")
    if not len(prompts):
        raise DataError("general prompts: there are none, so nothing would be protected; give at least one text")
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise DataError(f"general prompt {number} must be a text, got {type(prompt).__name__}; make a text of it")
        if not prompt.strip():
            raise DataError(f"general prompt {number} is empty; leave it out")


def _judge(cut: Mapping[str, Subspace], owners: Mapping[str, str]) -> None:
    """Says which layers freeze; refuses where all do."""
    ranks = {name: f"{name} (rank {cut[owner].rank} of {len(cut[owner].basis)})" for name, owner in owners.items()}
    frozen = [ranks[name] for name, owner in owners.items() if cut[owner].rank == len(cut[owner].basis)]
    if len(frozen) == len(owners):
        raise Unsupported(
            f"no protected layer has a free direction, so that none could learn: {_few(frozen)}; protect less of each "
            "(a larger `value`; of 'energy' or 'rank' a smaller one), or fewer `layers`"
        )
    if frozen:
        warnings.warn(
            f"{len(frozen)} of {len(owners)} protected layers have no free direction and stay as they are: "
            f"{_few(frozen)}; to let them learn, protect less of each (a larger `value`; of 'energy' or 'rank' a "
            "smaller one)",
            stacklevel=6,
        )
    log.info("protected: %s", ", ".join(ranks.values()))


def _few(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more there are; the log has them all."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
