"""ChildTuning-F: a random part of the gradient, before the optimizer sees it."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..counter import mask_key
from ..method import Method
from ..sites import Context, Site
from ..sparsify import check_density, sparsify
from ._rows import check_in_step
from ._sites import Entry


class MaskGradient:
    r"""The gradient rule :math:`g \leftarrow g \odot M / density`, with a fresh Bernoulli mask every step.

    Args:
        density: Share of the entries kept, in (0, 1]; stands in the groups as ``gradient_density``.
        seed: Of the masks; ``gradient_seed``.
    """

    def __init__(self, density: float, *, seed: int = 0) -> None:
        check_density(density)
        self.defaults = {"gradient_density": density, "gradient_seed": seed}

    def __call__(self, gradient: Tensor, entry: Entry, state: MutableMapping[str, Any]) -> Tensor:
        key = mask_key(entry.settings["gradient_seed"], entry.place.name, entry.step, "gradient")
        density = entry.settings["gradient_density"]
        return sparsify(gradient, density, how="random", rescale="inverse", key=key, offset=entry.place.offset)


@dataclass(frozen=True, kw_only=True)
class ChildTuning(Method):
    r"""Masks the gradient at random and divides it by the density, before the optimizer's moments.

    .. math:: g \leftarrow g \odot M / density, \qquad M_i \sim \mathrm{Bernoulli}(density)

    An optimizer with momentum therefore moves every parameter at every step; `UpdateDropout` masks after the moments.

    Args:
        density: Share of the gradient's entries kept, in (0, 1]; the paper tries 0.2, 0.3 and 0.4.
        seed: Of the masks.
    """

    name: ClassVar[str] = "childtuning"
    title: ClassVar[str] = "ChildTuning-F"
    source: ClassVar[str] = "Xu et al. 2021, arXiv:2109.05687"
    summary: ClassVar[str] = "a random part of the gradient is dropped, before the optimizer's moments"
    acts: ClassVar[frozenset[Site]] = frozenset({"gradient"})

    density: float
    seed: int = 0

    def __post_init__(self) -> None:
        check_density(self.density)

    def gradient_rule(self) -> MaskGradient:
        return MaskGradient(self.density, seed=self.seed)

    def check(self, context: Context) -> None:
        check_in_step(self, context)
