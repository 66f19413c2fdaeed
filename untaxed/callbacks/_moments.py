"""What becomes of the optimizer's moments when the policy's weights are replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import StoreError, Unsupported
from ..optim import Pipeline
from ..weights import local
from ._followed import followed

MomentsRule = Literal["kept", "cleared", "averaged"]
RULES = get_args(MomentsRule)
NO_MOMENTS = ("step", "at_merge", "master", "anchor")  # a count, and weights that our own optimizers keep
AVERAGED = frozenset({  # what torch's optimizers and their kin call moments; what else lies as they do may be anything
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "acc_delta",
})  # fmt: skip
ANCHOR = "anchor"  # that an optimizer's merges pull to: it belongs to initial and outlives every reset


class Moments:
    """The state that the optimizer keeps of the policy's parameters, at a reset cleared or replaced by an average.

    Args:
        optimizer: Of the policy.
        model: The policy.
        exclude: Patterns of parameters that are left alone.
        decay: Of the average of the moments that a reset writes back; None: a reset clears the state.
    Raises:
        Unsupported: There is no optimizer, or one that could not go on with its state cleared.
    """

    def __init__(
        self, optimizer: Any, model: nn.Module, exclude: Sequence[str] | None, decay: float | None = None
    ) -> None:
        if optimizer is None:
            raise Unsupported("what becomes of the moments needs the optimizer: give host=Host(optimizer=…)")
        self._optimizer, self._model, self._exclude, self._decay = _innermost(optimizer), model, exclude, decay
        self.averages: dict[str, Tensor] = {}
        if decay is None:
            self._check_clearable()

    @torch.no_grad()
    def update(self) -> None:
        """Takes the present moments into their averages, which start at 0, as the moments do.

        Raises:
            Unsupported: The optimizer keeps something that has no average, such as a product of its decays.
        """
        if self._decay is None:
            return
        for key, moment in self._present().items():
            average = self.averages.setdefault(key, torch.zeros_like(moment, dtype=torch.float32))
            average.lerp_(moment.to(torch.float32), 1 - self._decay)

    @torch.no_grad()
    def reset(self, *, afresh: bool) -> None:
        """Writes the averages back; or drops the whole state, so that the optimizer goes on as a new one.

        Args:
            afresh: The averages, too, begin at 0 again.
        """
        if self._decay is None:
            for parameter in self._parameters().values():
                gone = self._optimizer.state.pop(parameter, {})
                if ANCHOR in gone:
                    self._optimizer.state[parameter] = {ANCHOR: gone[ANCHOR]}
            return
        for key, moment in self._present().items():
            if key in self.averages:
                moment.copy_(self.averages[key])
                if afresh:
                    self.averages[key].zero_()

    def check(self, averages: Mapping[str, Tensor]) -> None:
        """Raises `StoreError` unless saved averages lie as the policy's parameters do."""
        tensors = followed(self._model, self._exclude)
        for key, average in averages.items():
            name = key.rpartition("/")[0]
            if name not in tensors or tensors[name].shape != average.shape:
                lies = tuple(tensors[name].shape) if name in tensors else "not there"
                raise StoreError(
                    f"the saved moments {key!r} have the shape {tuple(average.shape)}, the model's parameter is {lies}"
                )

    def load(self, averages: Mapping[str, Tensor]) -> None:
        """Takes up saved averages."""
        tensors = followed(self._model, self._exclude)
        self.averages = {
            key: tensor.to(tensors[key.rpartition("/")[0]].device, torch.float32, copy=True)
            for key, tensor in averages.items()
        }

    def _parameters(self) -> dict[str, nn.Parameter]:
        names = followed(self._model, self._exclude).keys()
        return {name: parameter for name, parameter in self._model.named_parameters() if name in names}

    def _present(self) -> dict[str, Tensor]:
        """The local part of every moment by ``parameter/key``."""
        found = {}
        for name, parameter in self._parameters().items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                if key in NO_MOMENTS or value is None:
                    continue
                if key not in AVERAGED or not _lies_as(parameter, value):
                    raise Unsupported(
                        f"{type(self._optimizer).__name__} keeps {key!r} of {name!r}, which is no moment of the "
                        "parameter's shape and has no average; take moments 'kept' or 'cleared'"
                    )
                found[f"{name}/{key}"] = local(value)
        return found

    def _check_clearable(self) -> None:
        """An optimizer that makes its state when it is built, as Adagrad does, could not go on without."""
        for parameter in self._parameters().values():
            if float(self._optimizer.state.get(parameter, {}).get("step", 1)) == 0:
                raise Unsupported(
                    f"{type(self._optimizer).__name__} makes its state when it is built and cannot go on once that is "
                    "cleared; take moments 'kept' or 'averaged'"
                )


def _lies_as(parameter: Tensor, value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and local(value).shape == local(parameter.detach()).shape
    )


def _innermost(optimizer: Any) -> Any:
    """The optimizer that keeps the moments, inside accelerate's wrapper and ours."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return inner.base if isinstance(inner, Pipeline) else inner
