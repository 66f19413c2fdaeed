"""Part-wise averaging: one part of the layers goes back to initial and all else stays, as a diagnostic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..checks import check_fraction
from ..errors import SpecError, nearest
from ..method import Method
from ..sites import Context, Site, Weights
from ..weights import check_same
from ._blocks import partition
from ._cut import Blocks, check_blocks, short_tag
from ._heterogeneous import heterogeneous_average
from ._partition import Partition

PARTS = ("input", "middle", "output")


@dataclass(frozen=True)
class PartAveraging(Method):
    """Averages one block of layers with the initial weights after training; everything else stays aligned.

    Args:
        block: ``input``, ``middle`` or ``output`` (the first, the middle and the last block), its number from 0, or its
            name: that of its expression, or such as ``layers 0-8``.
        initial_share: Share of ``initial`` in this block, in [0, 1]; 1 gives it back altogether.
        blocks: Into how many groups of layers, or regular expressions for tensors' names by block.
    """

    name: ClassVar[str] = "part_averaging"
    title: ClassVar[str] = "Part-wise averaging"
    source: ClassVar[str] = "Lin et al. 2024, arXiv:2309.06256, section 5"
    summary: ClassVar[str] = "one block of layers alone goes back to initial: where reward and tax come from"
    acts: ClassVar[frozenset[Site]] = frozenset({"after"})

    block: int | str
    initial_share: float = 1.0
    blocks: Blocks = 3

    def __post_init__(self) -> None:
        check_fraction("initial_share", self.initial_share)
        check_blocks(self.blocks)
        if not isinstance(self.blocks, int):
            self.place(len(self.blocks), tuple(self.blocks))
        elif not str(self.block).startswith("layer"):  # which layers a block has, and so its name, a model says
            self.place(self.blocks)

    @property
    def tag(self) -> str:
        return short_tag(self.name, [self.block, self.initial_share], self.settings())

    def check(self, context: Context) -> None:
        if context.shapes is None:
            return
        try:
            self._alone(partition({name: tuple(shape) for name, shape in context.shapes.items()}, self.blocks))
        except ValueError as error:
            raise SpecError(f"methods: {self.name}: {error}") from None

    def after(self, initial: Weights, aligned: Weights) -> dict[str, Tensor]:
        check_same(initial, aligned)  # before an expression meets no name for it
        blocks = partition(aligned, self.blocks)
        return heterogeneous_average(initial, aligned, self._alone(blocks), blocks, rest_share=0.0)

    def _alone(self, blocks: Partition) -> dict[str, float]:
        return blocks.alone(blocks.names[self.place(len(blocks.names), blocks.names)], self.initial_share)

    def place(self, count: int, names: tuple[str, ...] = ()) -> int:
        """The number of the block among that many, of these names where they are known."""
        if self.block in names:
            return names.index(str(self.block))
        parts = {"input": 0, "middle": count // 2, "output": count - 1}
        if self.block == "middle" and count % 2 == 0:
            raise ValueError(f"{count} blocks have no middle one; name a block by its number")
        place = parts.get(self.block) if isinstance(self.block, str) else self.block
        if place is None:
            known = nearest(str(self.block), {*PARTS, *names})
            raise ValueError(f"there is no block {self.block!r}{known}, or a number from 0 to {count - 1}")
        if not 0 <= place < count:
            raise ValueError(f"block must be between 0 and {count - 1}, got {place}")
        return place
