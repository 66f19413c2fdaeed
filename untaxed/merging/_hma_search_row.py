"""Heterogeneous model averaging beyond the paper, as a row: ratios searched against measured reward and tax."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from ..checks import check_fraction
from ..errors import DataError
from ..method import Method
from ..sites import Context, Making, Site
from ._cut import Blocks, Policies, check_blocks, check_count, check_cut, check_least, cut, short_tag
from ._goals import Evaluation, Goal, LeastTax, MostReward, points
from ._heterogeneous import blended, heterogeneous_average
from ._partition import Partition, Weighting
from ._proposers import Algorithm
from ._search import Searched, search_ratios


@dataclass(frozen=True)
class HMASearch(Method):
    """Averages with the initial weights block by block, the shares searched for reward and tax as they are measured.

    Every candidate is measured on validation: the proxy reward, and the tax on the select abilities. Plain averaging is
    among the candidates.

    Args:
        goal: ``least_tax`` among averages that keep enough reward, or ``most_reward`` among those of little tax.
        reward_kept: For ``least_tax``: the share of the proxy reward won by the aligned model, in [0, 1].
        tax_at_most: For ``most_reward``: the limit.
        evaluations: Models that are measured.
        initial_share: Mean share of ``initial`` over the blocks; none: it is searched too.
        blocks: Into how many groups of layers, or regular expressions for tensors' names by block.
        apart: Attention and MLP of a group are two blocks.
        policies: ``as_average``: tensors outside the blocks get the mean; ``as_released``: embeddings, norms and the
            like are initial's.
        weighting: What a block counts in the mean: one (``blocks``), its ``layers`` or its ``parameters``.
        algorithm: ``model`` interpolates what was seen; ``cmaes``; ``random``, the control.
    """

    name: ClassVar[str] = "hma_search"
    title: ClassVar[str] = "Heterogeneous model averaging, searched"
    source: ClassVar[str] = "ours; the problem is that of Lin et al. 2024, arXiv:2309.06256"
    summary: ClassVar[str] = "the same, the shares searched for reward and tax as they are measured on validation"
    acts: ClassVar[frozenset[Site]] = frozenset({"after"})

    goal: Literal["least_tax", "most_reward"] = "least_tax"
    reward_kept: float = 0.95
    tax_at_most: float | None = None
    evaluations: int = 60
    initial_share: float | None = None
    blocks: Blocks = 3
    apart: bool = False
    policies: Policies = "as_average"
    weighting: Weighting = "blocks"
    algorithm: Algorithm = "model"

    def __post_init__(self) -> None:
        check_fraction("reward_kept", self.reward_kept)
        if (self.goal == "most_reward") != (self.tax_at_most is not None):
            raise ValueError("tax_at_most is the limit of the goal most_reward, and of no other: give both or neither")
        if self.tax_at_most is not None:
            check_least("tax_at_most", self.tax_at_most)
        if self.initial_share is not None:
            check_fraction("initial_share", self.initial_share)
        check_count("evaluations", self.evaluations)
        check_blocks(self.blocks)

    @property
    def tag(self) -> str:
        return short_tag(self.name, [self.goal, self.evaluations], self.settings())

    @property
    def measurements(self) -> int:
        return self.evaluations + 1  # the aligned model says what the limit is

    def check(self, context: Context) -> None:
        check_cut(self, context)

    def tell(self) -> str:
        return f"{self.measurements} models measured on validation for each kept checkpoint of each run"

    def make(self, making: Making) -> dict[str, Tensor]:
        blocks = cut(self, making.model)
        found = making.once(lambda: self._searched(making, blocks))
        return heterogeneous_average(making.initial, making.aligned, found["ratios"], blocks)

    def _searched(self, making: Making, blocks: Partition) -> dict[str, Any]:
        goal, aligned = self._goal(making)
        with blended(making.model, making.initial, making.aligned, blocks) as blend:

            def evaluate(ratios: dict[str, float]) -> dict[str, Any]:
                blend.write(ratios)
                return dict(making.judge())

            searched = search_ratios(
                evaluate,
                blocks,
                goal,
                initial_share=self.initial_share,
                evaluations=self.evaluations,
                algorithm=self.algorithm,
                seed=making.seed,
                log=making.folder / "evaluations.jsonl",
                on_evaluation=lambda number, _: making.tell(f"{number + 1} of {self.evaluations} averages"),
            )
        return self._record(searched, goal, aligned)

    def _goal(self, making: Making) -> tuple[Goal, dict[str, Any]]:
        """The goal, and what the aligned model measures."""
        making.tell("aligned")
        found = dict(making.judge())
        for name in ("reward", "tax", "initial_reward"):
            if found.get(name) is None:
                raise DataError(
                    f"{self.name}: {name} of the aligned model is undefined: {found.get('why', 'not said')}"
                )
        if self.tax_at_most is not None:
            return MostReward(self.tax_at_most), found
        limits = {"initial": found["initial_reward"], "aligned": found["reward"]}
        return LeastTax.keeping(self.reward_kept, **limits), found

    def _record(self, searched: Searched, goal: Goal, aligned: dict[str, Any]) -> dict[str, Any]:
        best = searched.best or _nearest(searched, goal)
        if searched.why is not None:
            warnings.warn(f"{self.name}: {searched.why}; the nearest is taken", stacklevel=2)
        keys = ("ratios", "values")
        told = {name: getattr(best, name) for name in keys}
        averaging = searched.averaging and {name: getattr(searched.averaging, name) for name in keys}
        said = {"goal": searched.goal, "evaluations": len(searched.evaluations), "why": searched.why}
        return {**told, **said, "aligned": aligned, "averaging": averaging}


def _nearest(searched: Searched, goal: Goal) -> Evaluation:
    """What comes nearest to the limit, where nothing keeps to it."""
    values = points(searched.evaluations)
    if not np.isfinite(values).all(axis=1).any():
        raise DataError(f"no average could be measured: {searched.evaluations[0].values.get('why', 'not said')}")
    return searched.evaluations[goal.order(values, values[:0])[0]]
