"""Logit mixing: how strongly a model is aligned, chosen while it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ..method import Method
from ..sites import Site
from ._logits import check_share
from ._mixture import LogitMixture


@dataclass(frozen=True)
class LogitMixing(Method):
    """Writes and answers by logits between those of the initial and the aligned model; trains nothing.

    A reference curve beside averaging, which mixes the weights: what is measured is this model made of two, in
    generation, questions, KL and perplexity alike. Each token takes a forward pass of either.

    Args:
        initial_share: Share of the initial model's logits, in [0, 1]: 0 is the aligned model, 1 the initial one.
    """

    name: ClassVar[str] = "logit_mixing"
    title: ClassVar[str] = "Logit mixing"
    source: ClassVar[str] = "Liu et al. 2024 (DeRa), arXiv:2402.02992; Liu et al. 2024, arXiv:2401.08565"
    summary: ClassVar[str] = "reference: logits between the initial and the aligned model's; 2 times the decoding"
    acts: ClassVar[frozenset[Site]] = frozenset({"decoding"})

    initial_share: float

    def __post_init__(self) -> None:
        check_share(self.initial_share)

    @property
    def decoding_cost(self) -> int:
        return 1 if self.initial_share in (0, 1) else 2

    @property
    def yardstick(self) -> str:
        return (
            "a reference curve, left out of the verdict: it is no model that can be saved, and every token takes a "
            "forward pass of the initial and one of the aligned model"
        )

    def decoded(self, initial: nn.Module, aligned: nn.Module) -> nn.Module:
        return LogitMixture(initial, aligned, self.initial_share)
