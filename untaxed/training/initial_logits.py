"""What the initial model says on a term's texts while the policy moves away from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..callbacks._followed import lent
from ..callbacks._reference import counterparts
from ..callbacks._state import TENSORS, check_state
from ..errors import StoreError, Unsupported
from ..measuring import undisturbed
from ..method import Method
from ..weights import reshard, trainable
from .host import policy
from .term import Part

if TYPE_CHECKING:
    from transformers import Trainer

STATE = {"initial": TENSORS}


class InitialLogits:
    """Reads texts as the initial model does.

    The trainer's reference model is asked where it is the initial model and stays so. Else the policy is: it is lent
    its trainable weights of the beginning (of an adapter that is the adapter alone), before the algorithm's own forward
    pass. That costs a copy of these weights in memory, saved in every checkpoint, and another one while they are lent.

    Args:
        trainer: Before its first step, or resumed.
        methods: All that are attached to it; one may move the reference.
        fresh: Whether the policy is the initial model; else `load_state_dict` is called next.
    """

    def __init__(self, trainer: Trainer, methods: Sequence[Method], *, fresh: bool) -> None:
        self._trainer: Any = trainer
        self._kept: dict[str, Tensor] = {}  # empty: the reference is asked
        if fresh and not self._reference_is_initial(methods):
            own = trainable(policy(trainer))
            self._kept = {name: tensor.clone() for name, tensor in own.items()}

    def read(self, part: Part) -> Tensor:
        """Initial's logits at the places, ``(places, vocabulary)``, without a gradient."""
        model = policy(self._trainer)
        if not self._kept:
            reference = self._trainer.ref_model
            with torch.no_grad(), undisturbed(reference):
                logits = part.read(reference)
                reshard(reference)
            return logits
        with torch.no_grad(), undisturbed(model), lent(model, self._kept):
            return part.read(model)

    def state_dict(self) -> dict[str, Any]:
        """The weights that are kept."""
        return {"initial": dict(self._kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up the initial weights of a training that began earlier."""
        check_state(state, STATE, of="the initial model")
        device = self._trainer.args.device
        self._kept = {name: tensor.to(device) for name, tensor in state["initial"].items()}
        if not self._kept and getattr(self._trainer, "ref_model", None) is None:
            raise StoreError(
                "the saved state counts on a reference model, which this trainer has not; build it as it was built"
            )

    def _reference_is_initial(self, methods: Sequence[Method]) -> bool:
        trainer, reference = self._trainer, getattr(self._trainer, "ref_model", None)
        moved = getattr(trainer.args, "sync_ref_model", False) or any(one.writes_reference for one in methods)
        if reference is None or moved:
            return False
        model = policy(trainer)
        try:
            theirs = counterparts(model, trainer.accelerator.unwrap_model(reference))
        except Unsupported:  # of another shape, or sharded otherwise
            return False
        ours = trainable(model)
        same = all(theirs[name].dtype == ours[name].dtype and torch.equal(theirs[name], ours[name]) for name in ours)
        return self._agreed(same)

    def _agreed(self, same: bool) -> bool:
        """Whether all processes, which may hold different shards, say so."""
        flag = torch.tensor(int(same), device=self._trainer.args.device)
        return bool(self._trainer.accelerator.reduce(flag, reduction="sum").item() == self._trainer.args.world_size)
