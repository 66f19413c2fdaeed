"""Weight averaging: move aligned weights part of the way back to the initial ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks import check_fraction
from ..method import Method
from ..sites import Site, Weights
from ..weights import address, check_same, wide
from ._rule import Rule, Survey
from ._whole import check_whole

Model = Weights | nn.Module | str | Path
BEYOND = "; weights beyond initial or aligned are an extrapolation (as in ExPO), another method"


@torch.no_grad()
def average(
    initial: Model, aligned: Model, *, initial_share: float, in_place: bool = False, out: str | Path | None = None
) -> dict[str, Tensor]:
    r"""Moves aligned weights part of the way back to the initial ones.

    .. math:: \theta = s\,\theta_{initial} + (1 - s)\,\theta_{aligned}

    Args:
        initial: Weights before alignment: name -> tensor of any shape, a module, or a checkpoint (a directory, a hub
            id, ``MODEL+ADAPTER``). A module with an adapter counts as none: `merge_and_unload` it first.
        aligned: Weights after alignment: the same names and shapes.
        initial_share: :math:`s`, in [0, 1]; 0 gives ``aligned`` bit for bit, 1 gives ``initial``.
        in_place: Writes into ``aligned``'s tensors (tied ones once), a tensor at a time; not for a checkpoint.
        out: Of two checkpoints: the directory to appear, written block by block.
    Returns:
        New tensors with ``aligned``'s names, dtypes and devices; ``aligned``'s own where ``in_place``; of checkpoints
        views on the files that were written. Integer and boolean tensors are no weights: they are copied from the
        model with the larger share (from ``aligned`` at one half).
    Raises:
        ValueError: ``initial_share`` is no number in [0, 1], names or shapes differ, or the arguments do not go
            together. `Unsupported`, which is one, for the tensors of an adapter.
        UntaxedError: A checkpoint cannot be read, or the new one not be written.
    Example:
        >>> average({"w": torch.zeros(1)}, {"w": torch.ones(1)}, initial_share=0.25)["w"]
        tensor([0.7500])

    Source: Wortsman et al. 2022 (WiSE-FT), arXiv:2109.01903; Lin et al. 2024, arXiv:2309.06256.
    Differs: computed in float32 (float64 stays float64), cast back once.
    """
    _check_share(initial_share)
    files = [isinstance(model, str | Path) for model in (initial, aligned)]
    if any(files) or out is not None:
        if not all(files) or out is None or in_place:
            raise ValueError("two checkpoints need out=DIRECTORY and no in_place, and out= is for checkpoints alone")
        return _average_files(str(initial), str(aligned), initial_share, out)
    first, second = _named(initial), _named(aligned)
    check_whole(first, second)
    check_same(first, second)
    if not in_place:
        return {name: _average_one(first[name], end, initial_share) for name, end in second.items()}
    done: set[Any] = set()
    for name, end in second.items():
        if (place := address(end)) not in done:
            end.copy_(_average_one(first[name], end, initial_share))
            done.add(place)
    return second


def _named(model: Any) -> dict[str, Tensor]:
    if not isinstance(model, nn.Module):
        return dict(model)
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _average_files(initial: str, aligned: str, share: float, out: str | Path) -> dict[str, Tensor]:
    from ..checkpoints import LazyWeights
    from ._engine import merge  # which runs rules; this one it does not need

    said = {"merge_method": "averaging", "base_model": initial, "models": [{"model": aligned}]}
    merge({**said, "parameters": {"initial_share": share}}, out)
    written = LazyWeights(out)
    return {name: written.tensor(name) for name in written.entries}


def _check_share(initial_share: float) -> None:
    check_fraction("initial_share", initial_share, beyond=BEYOND)


def _average_one(initial: Tensor, aligned: Tensor, share: float) -> Tensor:
    start = initial.to(device=aligned.device)
    if not aligned.is_floating_point() or share in (0, 1):
        return (start if share > 0.5 else aligned).to(aligned.dtype, copy=True)
    precision = wide(aligned.dtype)
    return _between(aligned.to(precision), start.to(precision), share).to(aligned.dtype)


def _between(aligned: Tensor, initial: Tensor, share: float) -> Tensor:
    # what is equal stays so to the bit: the sum of products would not keep it, and lerp makes 0 of -0
    return torch.where(aligned == initial, aligned, torch.lerp(aligned, initial, share))


@dataclass(frozen=True)
class AverageRule(Rule):
    """`average` of one tensor; the base is initial.

    Args:
        initial_share: Of the base, in [0, 1].
    """

    needs_base: ClassVar[bool] = True

    initial_share: float

    def __post_init__(self) -> None:
        _check_share(self.initial_share)

    def check(self, models: int) -> None:
        if models != 1:
            raise ValueError(f"an average is of initial and one aligned model, got {models}")

    def owner(self) -> int | None:
        return None if self.initial_share > 0.5 else 0

    def combine(
        self, models: Sequence[Tensor], base: Tensor | None, *, survey: Survey | None, name: str, offset: int
    ) -> Tensor:
        assert base is not None
        if self.initial_share in (0, 1):
            return base if self.initial_share else models[0]
        return _between(models[0], base, self.initial_share)


@dataclass(frozen=True)
class Averaging(Method):
    """Averages the aligned with the initial weights after training.

    Args:
        initial_share: Share of ``initial``, in [0, 1].
    """

    name: ClassVar[str] = "averaging"
    title: ClassVar[str] = "Weight averaging"
    source: ClassVar[str] = "Wortsman et al. 2022, arXiv:2109.01903; Lin et al. 2024, arXiv:2309.06256"
    summary: ClassVar[str] = "one share of the initial model for every tensor, after training; costs no training"
    acts: ClassVar[frozenset[Site]] = frozenset({"after"})

    initial_share: float

    def __post_init__(self) -> None:
        _check_share(self.initial_share)

    def after(self, initial: Weights, aligned: Weights) -> dict[str, Tensor]:
        return average(initial, aligned, initial_share=self.initial_share)
