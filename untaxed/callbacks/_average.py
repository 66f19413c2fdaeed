"""An exponential average of a model's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..method import check_fraction
from ..weights import check_same, snapshot, trainable
from ._state import is_tensors


class WeightAverage:
    r"""Keeps an exponential average of a model's trainable parameters, in float32 on the local shard.

    .. math:: \bar\theta \leftarrow \eta\,\bar\theta + (1 - \eta)\,\theta

    The average starts at the model's present weights. It is float32 whatever the model's dtype: in bfloat16 an update
    below the spacing of its numbers would never move it.

    Args:
        model: The model to follow; its parameters are looked up by name at every update.
        decay: :math:`\eta`, in [0, 1]; 0 follows the model exactly, 1 never moves.
    Raises:
        ValueError: ``decay`` is no number in [0, 1], or the model has no trainable parameter.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        check_fraction("decay", decay)
        self.decay = decay
        self._model = model
        self._tensors = snapshot(model)
        if not self._tensors:
            raise ValueError(
                f"{type(model).__name__} has no trainable parameter, so its average would never move; "
                "set requires_grad on what is trained, or give the model that the optimizer trains"
            )

    @torch.no_grad()
    def update(self) -> None:
        """Takes the model's present weights into the average, in one fused pass."""
        current = trainable(self._model)
        check_same(self._tensors, current, names=("the average", "the model"))
        # a float32 parameter is used as it is, other dtypes are widened for the length of this call
        values = [current[name].to(torch.float32) for name in self._tensors]
        torch._foreach_lerp_(list(self._tensors.values()), values, 1 - self.decay)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Writes the average into the model's parameters in place, cast to their dtype."""
        current = trainable(self._model)
        check_same(self._tensors, current, names=("the average", "the model"))
        torch._foreach_copy_([current[name] for name in self._tensors], list(self._tensors.values()))

    def tensors(self) -> dict[str, Tensor]:
        """The averaged tensors themselves, by parameter name."""
        return dict(self._tensors)

    @torch.no_grad()
    def assign(self, values: Mapping[str, Tensor]) -> None:
        """Overwrites the average, in place.

        Raises:
            ValueError: The values are not tensors of the average's names and shapes; nothing is written then.
        """
        if not is_tensors(values):
            raise ValueError("an average is assigned tensors by name, such as the tensors() of another one")
        check_same(self._tensors, values, names=("the average", "the values given"))
        torch._foreach_copy_(list(self._tensors.values()), [values[name] for name in self._tensors])
