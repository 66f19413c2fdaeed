"""An exponential average of a model's weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_fraction
from ..weights import check_same
from ._followed import followed, lent, overwrite, snapshot_of
from ._settings import check_flag, check_patterns
from ._state import COUNT, FRACTION, TENSORS, check_state, is_tensors

PART = 1 << 18  # entries
STATE = {"average": TENSORS, "steps": COUNT, "updates": COUNT, "start_share": FRACTION}


class WeightAverage:
    r"""Keeps an exponential average of a model's trainable parameters, in float32 or wider on the local shard.

    .. math:: \bar\theta \leftarrow \eta\,\bar\theta + (1 - \eta)\,\theta

    The average starts at the model's present weights. It is float32 (float64 of a float64 model): in bfloat16 an
    update below the spacing of its numbers would never move it. Call `step()` after every ``optimizer.step()``.

    Args:
        model: The model to follow; its parameters are looked up by name at every update. For LoRA these are the
            adapters' alone, which are averaged factor by factor (the average of BA is another thing).
        decay: :math:`\eta`, in [0, 1]; 0 follows the model exactly, 1 never moves.
        half_life: In place of ``decay``: the optimizer steps after which what was taken in counts half,
            :math:`\eta = 2^{-update\_every / half\_life}`.
        update_every: Optimizer steps between updates.
        warm_up: Above 0 the k-th update takes :math:`\min(\eta, k / (k + warm\_up))` (k from 1) in place of
            :math:`\eta`, so that the start counts little soon; 0: off.
        bias_correction: The average starts from nothing, and `tensors` are divided by what was taken in: the start does
            not count.
        exclude: Shell patterns of parameter names that are left alone, such as ``"lm_head.*"``; a value head always is,
            unless this is None: then nothing is left out.
        device: Where the average is kept: None is where the model is, "cpu" the host's memory (pinned where there is an
            accelerator).
    Raises:
        ValueError: A setting is out of range, or the model has no trainable parameter.
    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> average = WeightAverage(model, decay=0.75)
        >>> _ = nn.init.ones_(model.weight)  # stands for optimizer.step()
        >>> average.step()
        >>> with average.swapped_in(model):
        ...     model.weight.item()
        0.25
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        decay: float | None = None,
        half_life: float | None = None,
        update_every: int = 1,
        warm_up: int = 0,
        bias_correction: bool = False,
        exclude: Sequence[str] | None = (),
        device: str | None = None,
    ) -> None:
        check_average(decay, half_life, update_every, warm_up, device, bias_correction=bias_correction)
        check_patterns("exclude", exclude)
        self.decay = decay_of(decay, half_life, update_every)
        self.update_every = update_every
        self.warm_up = warm_up
        self.bias_correction = bias_correction
        self.exclude = None if exclude is None else tuple(exclude)
        self._model = model
        self._tensors = snapshot_of(followed(model, self.exclude), device)
        if bias_correction:
            torch._foreach_zero_(list(self._tensors.values()))
        self._steps = 0
        self._updates = 0
        self._start_share = 1.0  # what the weights at the start still count

    @property
    def updates(self) -> int:
        """How often the model's weights were taken in."""
        return self._updates

    def step(self) -> bool:
        """Counts an optimizer step; True when it took the model's weights into the average."""
        self._steps += 1
        if due := self._steps % self.update_every == 0:
            self.update()
        return due

    @torch.no_grad()
    def update(self) -> None:
        """Takes the model's present weights into the average, in one fused pass."""
        current = self._current(self._model)
        self._updates += 1
        decay = self.decay
        if self.warm_up:
            decay = min(decay, self._updates / (self._updates + self.warm_up))
        self._start_share *= decay
        lerp(self._tensors, current, 1 - decay)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Writes the average into the model's parameters in place, cast to their dtype."""
        overwrite(self._current(self._model), self.tensors())

    @contextmanager
    def swapped_in(self, model: nn.Module | None = None) -> Iterator[nn.Module]:
        """Lends a model the average and gives its own weights back, bit for bit, whatever the block raises.

        Args:
            model: By default the one that is followed; else one with the same parameters.
        """
        model = self._model if model is None else model
        self._current(model)  # refuses another model
        with lent(model, self.tensors()):
            yield model

    def tensors(self) -> dict[str, Tensor]:
        """The average by parameter name: the averaged tensors themselves, or corrected copies where that is asked for.

        Raises:
            ValueError: A bias cannot be corrected before the first update.
        """
        if not self.bias_correction:
            return dict(self._tensors)
        if not self._updates:
            raise ValueError("a bias cannot be corrected before the first update: nothing was taken in yet")
        return {name: tensor / (1 - self._start_share) for name, tensor in self._tensors.items()}

    @torch.no_grad()
    def assign(self, values: Mapping[str, Tensor]) -> None:
        """Overwrites the average, in place.

        Raises:
            ValueError: The values are not tensors of the average's names and shapes; nothing is written then.
        """
        if not is_tensors(values):
            raise ValueError("an average is assigned tensors by name, such as the tensors() of another one")
        check_same(self._tensors, values, names=("the average", "the values given"))
        overwrite(self._tensors, values)

    def state_dict(self) -> dict[str, Any]:
        """The averaged tensors themselves and the counters."""
        counters = {"steps": self._steps, "updates": self._updates, "start_share": self._start_share}
        return {"average": dict(self._tensors), **counters}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state.

        Raises:
            ValueError: It is no saved state, or one of another model; nothing is taken up then.
        """
        check_state(state, STATE, of="WeightAverage")
        self.assign(state["average"])
        self._steps, self._updates, self._start_share = state["steps"], state["updates"], state["start_share"]

    def _current(self, model: nn.Module) -> dict[str, Tensor]:
        current = followed(model, self.exclude)
        check_same(self._tensors, current, names=("the average", "the model"))
        return current


def lerp(targets: Mapping[str, Tensor], values: Mapping[str, Tensor], share: float) -> None:
    """Moves targets, float32 or wider, by a share of the way to the values: at once where dtypes and devices agree."""
    alike = [name for name, target in targets.items() if _alike(target, values[name])]
    if alike:
        torch._foreach_lerp_([targets[name] for name in alike], [values[name] for name in alike], share)
    for name in targets.keys() - set(alike):
        _lerp_in_parts(targets[name], values[name], share)


def _lerp_in_parts(target: Tensor, value: Tensor, share: float) -> None:
    """Through a small buffer of the target's dtype that stays in the cache: no second copy of a tensor, let alone of
    all."""
    if not (target.is_contiguous() and value.is_contiguous()):
        target.lerp_(value.to(target), share)
        return
    buffer = torch.empty(min(PART, target.numel()), dtype=target.dtype, device=target.device)
    for own, other in zip(target.view(-1).split(PART), value.view(-1).split(PART)):
        own.lerp_(buffer[: own.numel()].copy_(other), share)


def _alike(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and first.device == second.device


def decay_of(decay: float | None, half_life: float | None, update_every: int) -> float:
    """The decay itself, or the one whose share of what was taken in is a half after `half_life` optimizer steps."""
    if decay is not None:
        return float(decay)
    assert half_life is not None
    return math.exp2(-update_every / half_life)


def check_average(
    decay: float | None,
    half_life: float | None,
    update_every: int,
    warm_up: int = 0,
    device: str | None = None,
    *,
    bias_correction: bool = False,
) -> None:
    """Raises `ValueError` for settings of an average that are out of range."""
    if (decay is None) == (half_life is None):
        raise ValueError("give one of decay and half_life")
    if decay is not None:
        check_fraction("decay", decay)
    else:
        if isinstance(half_life, bool) or not isinstance(half_life, Real) or not 0 < half_life < math.inf:
            raise ValueError(f"half_life must be a number of optimizer steps above 0, got {half_life!r}")
    check_steps("update_every", update_every)
    if isinstance(warm_up, bool) or not isinstance(warm_up, int) or warm_up < 0:
        raise ValueError(f"warm_up must be a whole number of updates, at least 0, got {warm_up!r}")
    if device not in (None, "cpu"):
        raise ValueError(f"device must be None or 'cpu', got {device!r}")
    check_flag("bias_correction", bias_correction)
    if bias_correction and decay_of(decay, half_life, update_every) == 1:
        raise ValueError("bias_correction divides by 1 - decay^updates, which is 0 at decay 1; take a smaller decay")


def check_steps(name: str, value: object) -> None:
    """Raises `ValueError` unless a setting is a number of optimizer steps."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of steps, at least 1, got {value!r}")
