"""Elastic Reset: at intervals the policy falls back to its own average, and the average to the initial model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import Unsupported
from ..method import ALONE, Between, Context, Host, Method, Site, check_fraction
from ..weights import check_same, snapshot
from ._average import WeightAverage
from ._state import COUNT, TENSORS, check_state

STATE = {"average": TENSORS, "initial": TENSORS, "steps_since_reset": COUNT, "resets": COUNT}


def kept_share(decay: float, updates: int) -> float:
    r"""The share of its displacement that a policy keeps at its first reset.

    A policy that drifts by the same step at every update, :math:`\theta_i = \theta_0 + i\,\delta`, falls back to its
    average after :math:`n` updates and keeps, of :math:`n\,\delta`,

    .. math:: 1 - \frac{\eta\,(1 - \eta^n)}{n\,(1 - \eta)}

    so that :math:`n (1 - \eta)` is what has to be tuned, not :math:`\eta` alone.

    Args:
        decay: :math:`\eta`, in [0, 1].
        updates: :math:`n`, updates of the average in one cycle, at least 1.
    Example:
        >>> round(kept_share(0.995, 17), 3)
        0.044

    Source: derived from the rule of Noukhovitch et al. 2023, arXiv:2312.07551.
    """
    _check_settings(decay, updates, 1)
    if decay == 1:
        return 0.0
    return 1 - decay * (1 - decay**updates) / (updates * (1 - decay))


class ElasticResetState:
    r"""Elastic Reset for a plain PyTorch loop: call `step()` after every `optimizer.step()`.

    .. math::
        \bar\theta &\leftarrow \eta\,\bar\theta + (1 - \eta)\,\theta \\
        \theta &\leftarrow \bar\theta,\quad \text{then } \bar\theta \leftarrow \theta_0

    The first line every ``update_every`` steps, the second every ``reset_every`` steps, in this order.

    The optimizer's state, schedules, reward models and frozen parameters are left alone, and parameters are written in
    place. Cost: two float32 copies of the trainable parameters (for LoRA: of the adapters).

    Args:
        model: The policy at its initial weights; build this after sharding or moving it.
        decay: :math:`\eta`, in [0, 1]; 1 resets to the initial model, 0 never changes the policy.
        reset_every: Optimizer steps between resets, a multiple of ``update_every``.
        update_every: Optimizer steps between updates of the average.
    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> reset = ElasticResetState(model, decay=0.5, reset_every=1)
        >>> _ = nn.init.ones_(model.weight)  # stands for optimizer.step()
        >>> reset.step(), model.weight.item()
        (True, 0.5)

    Source: Noukhovitch, Lavoie, Strub, Courville 2023, arXiv:2312.07551.
    Differs: the authors' code updates the average once an iteration of rollouts or once an inner epoch; here the unit
    is the optimizer step and `update_every` says how many. Their IMDB code also resets after the first iteration, and
    takes the average as KL reference; ours does neither.
    """

    def __init__(self, model: nn.Module, *, decay: float, reset_every: int, update_every: int = 1) -> None:
        _check_settings(decay, reset_every, update_every)
        self._reset_every = reset_every
        self._update_every = update_every
        self._average = WeightAverage(model, decay=decay)
        self._initial = snapshot(model)
        self.steps_since_reset = 0
        self.resets = 0

    def due(self) -> bool:
        """True when the next `step()` resets."""
        return self.steps_since_reset + 1 >= self._reset_every

    def step(self) -> bool:
        """Advances by one optimizer step; True when it reset the policy."""
        due = self.due()
        self.skip()
        if due:
            self._average.copy_to_model()
            self._average.assign(self._initial)
            self.steps_since_reset = 0
            self.resets += 1
        return due

    def skip(self) -> None:
        """Advances by one optimizer step without a reset; one that was due stays due."""
        self.steps_since_reset += 1
        if self.steps_since_reset % self._update_every == 0:
            self._average.update()

    def state_dict(self) -> dict[str, Any]:
        """The average, the initial weights and the counters: what a bit-identical resume needs."""
        return {
            "average": self._average.tensors(),
            "initial": dict(self._initial),
            "steps_since_reset": self.steps_since_reset,
            "resets": self.resets,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state; the initial weights become the saved ones, not the model's present ones.

        Raises:
            ValueError: It is no saved state, or one of another model; nothing is taken up then.
        """
        check_state(state, STATE, of="ElasticResetState")
        saved: Mapping[str, Tensor] = state["initial"]
        check_same(saved, self._initial, names=("the saved state", "the model"))
        self._average.assign(state["average"])
        torch._foreach_copy_(list(self._initial.values()), [saved[name] for name in self._initial])
        self.steps_since_reset, self.resets = state["steps_since_reset"], state["resets"]


@dataclass(frozen=True)
class ElasticReset(Method):
    """Resets the policy to its average and the average to the initial model, at intervals.

    Args:
        decay: Of the average, in [0, 1].
        reset_every: Optimizer steps between resets, a multiple of ``update_every``.
        update_every: Optimizer steps between updates of the average.
    """

    name: ClassVar[str] = "elastic_reset"
    title: ClassVar[str] = "Elastic Reset"
    source: ClassVar[str] = "Noukhovitch et al. 2023, arXiv:2312.07551"
    summary: ClassVar[str] = "every n steps the policy falls back to its average, and the average to the initial model"
    acts: ClassVar[frozenset[Site]] = frozenset({"between"})

    decay: float
    reset_every: int
    update_every: int = 1

    def __post_init__(self) -> None:
        _check_settings(self.decay, self.reset_every, self.update_every)

    def check(self, context: Context) -> None:
        if context.max_steps is not None and self.reset_every >= context.max_steps:
            raise Unsupported(
                f"elastic_reset would never reset: reset_every is {self.reset_every}, training has {context.max_steps} "
                "steps, and none comes at the last one; lower reset_every"
            )

    def between(self, model: nn.Module, host: Host = ALONE) -> Between:
        return ElasticResetState(model, decay=self.decay, reset_every=self.reset_every, update_every=self.update_every)


def _check_settings(decay: float, reset_every: int, update_every: int) -> None:
    check_fraction("decay", decay)
    for name, value in (("reset_every", reset_every), ("update_every", update_every)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of steps, at least 1, got {value!r}")
    if reset_every % update_every:
        raise ValueError(f"reset_every must be a multiple of update_every, got {reset_every} and {update_every}")
