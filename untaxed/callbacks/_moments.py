"""What becomes of the optimizer's moments when the policy's weights are replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import Unsupported
from ..weights import local
from ._followed import followed

MomentsRule = Literal["kept", "cleared", "averaged"]
RULES = get_args(MomentsRule)


class Moments:
    """The optimizer's tensors that lie as their parameter does (Adam's moments, momenta), by ``parameter/key``.

    Args:
        optimizer: Of the policy.
        model: The policy.
        exclude: Patterns of parameters that are left alone.
        decay: Of the average of the moments that a reset writes back; None: a reset clears them.
    """

    def __init__(self, optimizer: Any, model: nn.Module, exclude: Sequence[str] | None, decay: float | None) -> None:
        if optimizer is None:
            raise Unsupported("what becomes of the moments needs the optimizer: give host=Host(optimizer=…)")
        self._optimizer, self._model, self._exclude, self._decay = optimizer, model, exclude, decay
        self.averages: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Takes the present moments into their averages, which start at 0, as the moments do."""
        if self._decay is None:
            return
        for key, moment in self._present().items():
            average = self.averages.setdefault(key, torch.zeros_like(moment, dtype=torch.float32))
            average.lerp_(moment.to(torch.float32), 1 - self._decay)

    @torch.no_grad()
    def reset(self) -> None:
        """Writes the averages back and empties them; or clears the moments, and the steps that Adam counts by."""
        for key, moment in self._present().items():
            if self._decay is None:
                moment.zero_()
            elif key in self.averages:
                moment.copy_(self.averages[key])
                self.averages[key].zero_()
        if self._decay is None:
            for state in self._states().values():
                if isinstance(state.get("step"), Tensor):
                    state["step"].zero_()
                elif "step" in state:
                    state["step"] = 0

    def load(self, averages: Mapping[str, Tensor]) -> None:
        """Takes up saved averages."""
        device = next(iter(followed(self._model, self._exclude).values())).device
        self.averages = {key: tensor.to(device, copy=True) for key, tensor in averages.items()}

    def _states(self) -> dict[str, Any]:
        names = followed(self._model, self._exclude).keys()
        found = {name: p for name, p in self._model.named_parameters() if name in names}
        return {name: self._optimizer.state[p] for name, p in found.items() if p in self._optimizer.state}

    def _present(self) -> dict[str, Tensor]:
        shapes = {name: tensor.shape for name, tensor in followed(self._model, self._exclude).items()}
        return {
            f"{name}/{key}": local(value)
            for name, state in self._states().items()
            for key, value in state.items()
            if isinstance(value, Tensor) and value.is_floating_point() and local(value).shape == shapes[name]
            and key != "step"
        }  # fmt: skip
