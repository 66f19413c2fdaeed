"""What a model is cut into: blocks with a ratio each, and the other tensors under their policies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..checks import check_fraction
from ..errors import UsageError, nearest
from ._simplex import mean_of

Role = Literal["embedding", "norm", "head", "bias", "router", "other"]
Policy = Literal["initial", "aligned", "mean"]
Weighting = Literal["blocks", "layers", "parameters"]

AS_AVERAGE: Mapping[Role, Policy] = dict.fromkeys(get_args(Role), "mean")
AS_RELEASED: Mapping[Role, Policy] = {**dict.fromkeys(get_args(Role), "initial"), "head": "mean"}


@dataclass(frozen=True)
class Block:
    """Tensors that share one ratio.

    Attributes:
        name: Such as ``layers 0-7``.
        tensors: Their names; of tied names all.
        layers: How many layers they lie in.
        parameters: How many numbers they hold; tied ones once.
    """

    name: str
    tensors: tuple[str, ...]
    layers: int
    parameters: int


@dataclass(frozen=True)
class Partition:
    """Every tensor of a model, in one block or under one policy.

    Attributes:
        blocks: In the order of the layers.
        rest: The other tensors' names by role.
        policies: By role, which share of initial these get: all (``initial``), none (``aligned``) or the ratios' mean.
        weighting: What a block counts in that mean: 1, its layers, or its parameters.
    """

    blocks: tuple[Block, ...]
    rest: Mapping[Role, tuple[str, ...]]
    policies: Mapping[Role, Policy]
    weighting: Weighting = "blocks"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(block.name for block in self.blocks)

    @property
    def weights(self) -> tuple[float, ...]:
        """What every block counts in the mean."""
        counts = {"blocks": lambda _: 1, "layers": lambda b: b.layers, "parameters": lambda b: b.parameters}
        return tuple(float(counts[self.weighting](block)) for block in self.blocks)

    def mean(self, ratios: Mapping[str, float]) -> float:
        """The ratios' mean as this partition weighs it; equal ratios give themselves, bit for bit."""
        return mean_of(self.ordered(ratios), self.weights)

    def ordered(self, ratios: Mapping[str, float]) -> list[float]:
        """Ratios in the blocks' order.

        Raises:
            UsageError: A block has no ratio, a ratio no block, or one is no number in [0, 1].
        """
        for name in ratios:
            if name not in self.names:
                raise UsageError(f"there is no block {name!r}{nearest(str(name), self.names)}")
        for name in self.names:
            if name not in ratios:
                raise UsageError(f"block {name!r} has no ratio")
            check_fraction(f"the ratio of {name!r}", ratios[name])
        return [float(ratios[name]) for name in self.names]

    def named(self, values: Iterable[float]) -> dict[str, float]:
        """Numbers in the blocks' order, by the blocks' names."""
        return {name: float(value) for name, value in zip(self.names, values, strict=True)}

    def equal(self, share: float) -> dict[str, float]:
        """The same ratio for every block: plain averaging, where every policy is ``mean``."""
        return self.named([share] * len(self.blocks))

    def alone(self, name: str, share: float) -> dict[str, float]:
        """One block at a share and the others aligned, for part-wise averaging."""
        return {**self.equal(0.0), **{name: float(share)}}

    def shares(self, ratios: Mapping[str, float], *, rest_share: float | None = None) -> dict[str, float]:
        """The share of initial that every tensor gets.

        Args:
            ratios: By block.
            rest_share: What the policy ``mean`` stands for; None: the ratios' mean.
        """
        mean = self.mean(ratios) if rest_share is None else float(rest_share)
        check_fraction("rest_share", mean)
        ends = {"initial": 1.0, "aligned": 0.0, "mean": mean}
        rest = {name: ends[self.policies[role]] for role, names in self.rest.items() for name in names}
        return rest | {name: float(ratios[block.name]) for block in self.blocks for name in block.tensors}

    def describe(self) -> dict[str, Any]:
        """What this partition is, as plain values for files."""
        blocks = {
            block.name: {"layers": block.layers, "parameters": block.parameters, "tensors": [*block.tensors]}
            for block in self.blocks
        }
        rest = {role: {"policy": self.policies[role], "tensors": [*names]} for role, names in self.rest.items()}
        return {"blocks": blocks, "rest": rest, "weighting": self.weighting}
