"""What a merge is to those that stream it: a rule that works on blocks, and a survey of the whole tensor before."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ..weights import wide

BLOCK = 1 << 19  # entries of one block, here and in the streaming engine


class Survey(Protocol):
    """What has to be known of a whole tensor before any block of it can be merged.

    Every pass gives every block once. `take` may be called from several threads, blocks in any order; `again` once a
    pass is over, from one thread. After the last pass a survey is only read.
    """

    def take(self, models: Sequence[Tensor], base: Tensor | None, offset: int) -> None:
        """Looks at one block; it may overwrite the block's tensors."""

    def again(self) -> bool:
        """Ends a pass over all blocks; True when another one is needed."""


class Rule(ABC):
    """One merge with all its numbers resolved for one tensor: a frozen dataclass.

    It works on blocks: flat, contiguous float32 tensors (float64 where the storage is float64), each the same run of
    consecutive entries of the flattened tensor for every model. Blocks are fresh and may be overwritten. They start at
    multiples of 4,096 entries; nothing else about their size changes the result.
    """

    needs_base: ClassVar[bool] = False
    least: ClassVar[int] = 1  # models, the base not counted

    @property
    def passes(self) -> int:
        """How often the parents are read, the last time for the merge itself; at most, but for rare distributions."""
        return 1

    def check(self, models: int) -> None:
        """Raises `ValueError` where the rule is not for so many models (the base does not count)."""
        if models < self.least:
            raise ValueError(f"{type(self).__name__} needs at least {self.least} models, got {models}")

    def survey(self, total: int, *, name: str = "") -> Survey | None:
        """A fresh survey of one tensor; None where the rule acts on every entry by itself.

        Args:
            total: Entries of the whole tensor.
            name: Of the tensor, as `combine` gets it: random choices depend on it.
        """
        return None

    def owner(self) -> int | None:
        """Whose integers, truth values and complex numbers are taken, which are no weights: the place of the model with
        the largest share, the first of equal ones; None: the base's, whose share is the largest where nothing moves.
        """
        return 0

    @abstractmethod
    def combine(
        self, models: Sequence[Tensor], base: Tensor | None, *, survey: Survey | None, name: str, offset: int
    ) -> Tensor:
        """One block of the merge: a new tensor, or one of those given, overwritten.

        Args:
            models: The block of every model.
            base: The block of the base model; needed where `needs_base`, else unused.
            survey: What `survey` made, after its last pass.
            name: Of the tensor; random masks depend on it.
            offset: The block's place in the flattened tensor.
        """


@torch.no_grad()
def merged(rule: Rule, models: Sequence[Tensor], base: Tensor | None = None, *, name: str = "") -> Tensor:
    """Merges one whole tensor, as the streaming engine does it block by block.

    Args:
        rule: The merge with its numbers.
        models: One tensor a model, of one shape; they are not written.
        base: The common ancestor's; needed where ``rule.needs_base``.
        name: Of the tensor; random masks depend on it.
    Returns:
        A new tensor with the first model's dtype and device; computed in float32 (float64 where one of the tensors
        is), cast once. Integer and boolean tensors are no weights: that of the largest share is copied (`Rule.owner`).
    Raises:
        ValueError: Shapes differ, no model or no base is given where one is needed, or the rule is for another number
            of models.
    """
    _check(rule, models, base)
    like = models[0]
    if not like.is_floating_point():
        owner = rule.owner()
        whose = base if owner is None and base is not None else models[owner or 0]
        return whose.detach().to(like.device, like.dtype, copy=True)
    result = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    flat, blocks = result.view(-1), _blocks(models, base)
    survey = rule.survey(like.numel(), name=name)
    while survey is not None:
        for parts, part, offset in blocks():
            survey.take(parts, part, offset)
        if not survey.again():
            break
    for parts, part, offset in blocks():
        done = rule.combine(parts, part, survey=survey, name=name, offset=offset)
        flat[offset : offset + done.numel()] = done
    return result


def _check(rule: Rule, models: Sequence[Tensor], base: Tensor | None) -> None:
    if not models:
        raise ValueError("a merge needs at least 1 model, got none")
    if rule.needs_base and base is None:
        raise ValueError(f"{type(rule).__name__} needs the base model's tensor, got none")
    shapes = [tuple(tensor.shape) for tensor in (*models, *([] if base is None else [base]))]
    if len(set(shapes)) > 1:
        raise ValueError(f"tensors to merge must have one shape, got {', '.join(map(str, shapes))}")
    rule.check(len(models))


Blocks = Callable[[], Iterator[tuple[list[Tensor], Tensor | None, int]]]


def _blocks(models: Sequence[Tensor], base: Tensor | None) -> Blocks:
    """Gives the blocks of whole tensors, fresh copies at every pass."""
    given = [*models, *([] if base is None else [base])]
    precision = max((wide(tensor.dtype) for tensor in given), key=lambda dtype: dtype.itemsize)
    flat = [tensor.detach().to(models[0].device).reshape(-1) for tensor in given]

    def blocks() -> Iterator[tuple[list[Tensor], Tensor | None, int]]:
        for offset in range(0, flat[0].numel(), BLOCK):
            parts = [tensor[offset : offset + BLOCK].to(precision, copy=True) for tensor in flat]
            yield parts[: len(models)], None if base is None else parts[-1], offset

    return blocks
