"""Heterogeneous model averaging as a row of the methods' table: the paper's objective on the run's own responses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..checks import check_fraction
from ..method import Method
from ..sites import Context, Making, Need, Site
from ._cut import Blocks, Policies, check_blocks, check_count, check_cut, check_least, cut, short_tag
from ._heterogeneous import heterogeneous_average
from ._hma import learn_ratios
from ._partition import Partition, Weighting
from ._samples import Scope, best_by_reward, token_batches


@dataclass(frozen=True)
class HMA(Method):
    """Averages with the initial weights block by block, the shares learned by the paper's objective.

    The aligned model answers training prompts, the answers of most proxy reward are kept, and the shares are those
    under which the average says them with most likelihood. No gold reward and no ability is looked at.

    Args:
        initial_share: Mean share of ``initial`` over the blocks, in [0, 1]: what plain averaging gives to all of them.
        blocks: Into how many groups of layers, or regular expressions for tensors' names by block.
        apart: Attention and MLP of a group are two blocks.
        policies: ``as_average``: tensors outside the blocks get the mean, so that equal shares are plain averaging;
            ``as_released``: embeddings, norms and the like are initial's, as in the paper's code.
        weighting: What a block counts in the mean: one (``blocks``), its ``layers`` or its ``parameters``.
        samples: Responses that are drawn, one a prompt; the paper draws 5,000.
        kept: Those of most reward, learned from; the paper keeps 2,000.
        batch_size: Responses a step.
        epochs: Passes over them.
        learning_rate: The most a share moves in a step, about.
        pull: Weight of the pull towards the mean.
        scope: Tokens that count: the ``response``, or ``all``, as in the paper's code.
    """

    name: ClassVar[str] = "hma"
    title: ClassVar[str] = "Heterogeneous model averaging"
    source: ClassVar[str] = "Lin et al. 2024, arXiv:2309.06256"
    summary: ClassVar[str] = "a share of the initial model for every block of layers, learned after training"
    acts: ClassVar[frozenset[Site]] = frozenset({"after"})
    needs: ClassVar[frozenset[Need]] = frozenset({"prompts"})

    initial_share: float
    blocks: Blocks = 3
    apart: bool = False
    policies: Policies = "as_average"
    weighting: Weighting = "blocks"
    samples: int = 640
    kept: int = 256
    batch_size: int = 8
    epochs: int = 2
    learning_rate: float = 0.02
    pull: float = 0.0
    scope: Scope = "response"

    def __post_init__(self) -> None:
        check_fraction("initial_share", self.initial_share)
        check_blocks(self.blocks)
        for name in ("samples", "kept", "batch_size", "epochs"):
            check_count(name, getattr(self, name))
        if self.kept > self.samples:
            raise ValueError(f"kept must be at most samples, got {self.kept} of {self.samples}")
        for name in ("learning_rate", "pull"):
            check_least(name, getattr(self, name))

    @property
    def tag(self) -> str:
        return short_tag(self.name, [self.initial_share], self.settings())

    @property
    def steps(self) -> int:
        return self.epochs * math.ceil(self.kept / self.batch_size)

    @property
    def measurements(self) -> int:
        return 2 if 0 < self.initial_share < 1 else 0  # drawing and learning, in the pocket world

    def check(self, context: Context) -> None:
        check_cut(self, context)

    def tell(self) -> str:
        return f"{self.samples} responses drawn, {self.kept} learned from in {self.steps} steps of {self.batch_size}"

    def make(self, making: Making) -> dict[str, Tensor]:
        blocks = cut(self, making.model)
        found = making.once(lambda: self._learned(making, blocks))
        rest = self.initial_share
        return heterogeneous_average(making.initial, making.aligned, found["ratios"], blocks, rest_share=rest)

    def _learned(self, making: Making, blocks: Partition) -> dict[str, Any]:
        if self.initial_share in (0, 1):  # there is one choice, and no word is needed to make it
            return {"ratios": blocks.equal(self.initial_share)}
        making.tell(f"{self.samples} responses")
        drawn = making.respond(self.samples)
        best = best_by_reward(drawn.rewards, self.kept)
        batches = token_batches(
            [drawn.prompts[row] for row in best],
            [drawn.responses[row] for row in best],
            batch_size=self.batch_size,
            seed=making.seed,
        )
        learned = learn_ratios(
            making.model,
            making.initial,
            making.aligned,
            blocks,
            batches,
            initial_share=self.initial_share,
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            pull=self.pull,
            scope=self.scope,
            on_step=lambda number, _: making.tell(f"step {number + 1} of {self.steps}"),
        )
        least = min(drawn.rewards[row] for row in best)
        return {**learned.record(), "reward_from": least, "reward_mean": sum(drawn.rewards) / len(drawn.rewards)}
