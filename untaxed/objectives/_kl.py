"""The KL coefficient that the algorithms already have, as a row of the methods' table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import Unsupported
from ..method import Method
from ..sites import Context, Site

ANCHORED = ("dpo", "ipo", "kto", "rloo", "grpo")  # algorithms whose `beta` ties the policy to the initial model


@dataclass(frozen=True)
class KL(Method):
    r"""Sets the strength :math:`\beta` with which the algorithm ties the policy to the initial model.

    In rloo and grpo :math:`\beta` multiplies a KL penalty in nats a token; in dpo, ipo and kto it is the inverse scale
    of the implicit reward, so that values are not comparable between the two families.

    Args:
        beta: :math:`\beta`, above 0.
    """

    name: ClassVar[str] = "kl"
    title: ClassVar[str] = "KL coefficient"
    source: ClassVar[str] = "Ziegler et al. 2019, arXiv:1909.08593; Rafailov et al. 2023, arXiv:2305.18290"
    summary: ClassVar[str] = "the algorithm's own beta: how strongly the policy is tied to the initial model"
    acts: ClassVar[frozenset[Site]] = frozenset({"loss"})

    beta: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise ValueError(f"beta must be above 0 and finite, got {self.beta}")

    def check(self, context: Context) -> None:
        if context.algorithm not in ANCHORED:
            raise Unsupported(
                f"kl needs an algorithm with a beta ({', '.join(ANCHORED)}), got {context.algorithm or 'no algorithm'}"
            )

    def arguments(self) -> dict[str, Any]:
        return {"beta": self.beta}
