"""The reference of the KL term follows the policy: TR-DPO's syncs, and what WARP's anchor is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ..checks import check_fraction
from ..errors import Unsupported
from ..method import Method
from ..sites import ALONE, Between, Context, Host, Site
from ._followed import followed
from ._reference import Reference, Source, reference_in
from ._state import COUNT, TENSORS, check_state

STATE = {"reference": TENSORS, "steps_since_sync": COUNT, "syncs": COUNT}


class SyncReferenceState:
    r"""Moves the reference towards the policy, for a plain PyTorch loop: `step()` after every `optimizer.step()`.

    .. math:: \theta_{reference} \leftarrow s\,\theta + (1 - s)\,\theta_{reference}

    every ``sync_every`` steps. The policy, its optimizer and frozen parameters are left alone; the reference is written
    in place, in float32. Cost: one pass a sync, and in each saved state a copy of the reference; where the reference is
    bfloat16 or float16 and ``share`` is below 1, a float32 copy of it in memory too. With ``sync_every=1`` and a
    small share this is WARP's anchor, an exponential average of decay :math:`1 - s`.

    Args:
        policy: The model that trains; its trainable parameters are followed.
        reference: The reference model; or a function that gives its tensors by the policy's names, local shards.
        share: :math:`s`, of the policy, in [0, 1]; 1 copies it bit for bit, 0 never changes the reference.
        sync_every: Optimizer steps between syncs.
    Raises:
        ValueError: A setting is out of range, or the reference has other tensors than the policy.
    Example:
        >>> import torch
        >>> policy, reference = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(reference.weight), nn.init.ones_(policy.weight)
        >>> sync = SyncReferenceState(policy, reference, share=0.5, sync_every=1)
        >>> sync.step(), reference.weight.item()
        (False, 0.5)

    Source: Gorbatovski et al. 2024 (TR-DPO), arXiv:2404.09656; Ramé et al. 2024 (WARP), arXiv:2406.16768, part 1.
    Differs: TRL mixes in the reference's own dtype, where small shares are lost, and over the whole model; here only
    what is trained moves, and what was held back while samples wait starts a cycle of its own.
    """

    def __init__(self, policy: nn.Module, reference: Source, *, share: float = 0.6, sync_every: int = 512) -> None:
        _check_settings("share", share, sync_every)
        self._policy = policy
        self._share = share
        self._sync_every = sync_every
        own = followed(policy)
        self._reference = Reference(policy, reference, small_moves=share < 1)
        self._reference.check(own, of="the policy")
        self.steps_since_sync = 0
        self.syncs = 0

    def due(self) -> bool:
        """True when the next `step()` moves the reference."""
        return self.steps_since_sync + 1 >= self._sync_every

    def step(self) -> bool:
        """Advances by one optimizer step; False, since the policy's weights stay."""
        due = self.due()
        self.skip()
        if due:
            self._reference.move(followed(self._policy), self._share)
            self.steps_since_sync = 0
            self.syncs += 1
        return False

    def skip(self) -> None:
        """Advances by one optimizer step without a sync; one that was due stays due."""
        self.steps_since_sync += 1

    def state_dict(self) -> dict[str, Any]:
        """The reference, which no trainer saves, and the counters: what a bit-identical resume needs."""
        return {
            "reference": self._reference.tensors(),
            "steps_since_sync": self.steps_since_sync,
            "syncs": self.syncs,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state; the reference becomes the saved one.

        Raises:
            ValueError: It is no saved state, or one of another model; nothing is taken up then.
        """
        check_state(state, STATE, of="SyncReferenceState")
        self._reference.check(state["reference"], of="the saved state")
        self._reference.load(state["reference"])
        self.steps_since_sync, self.syncs = state["steps_since_sync"], state["syncs"]


@dataclass(frozen=True)
class SyncReference(Method):
    """Moves the KL term's reference towards the policy, at intervals (TR-DPO).

    TRL's names: ``share`` is ``ref_model_mixup_alpha``, ``sync_every`` is ``ref_model_sync_steps``, with the same
    meaning and the same defaults. ``share`` 1 is the paper's hard update. This loosens the tie to the initial model.

    Args:
        share: Of the policy in the new reference, in [0, 1].
        sync_every: Optimizer steps between syncs.
    """

    name: ClassVar[str] = "sync_reference"
    title: ClassVar[str] = "Reference sync"
    source: ClassVar[str] = "Gorbatovski et al. 2024 (TR-DPO), arXiv:2404.09656"
    summary: ClassVar[str] = "every n steps the reference of the KL term moves towards the policy, or becomes it"
    acts: ClassVar[frozenset[Site]] = frozenset({"between"})

    share: float = 0.6
    sync_every: int = 512

    def __post_init__(self) -> None:
        _check_settings("share", self.share, self.sync_every)

    @property
    def writes_reference(self) -> bool:
        return True

    def check(self, context: Context) -> None:
        check_in_time(self.name, "sync_every", self.sync_every, context)

    def between(self, model: nn.Module, host: Host = ALONE) -> Between:
        reference = reference_in(host, self.name)
        return SyncReferenceState(model, reference, share=self.share, sync_every=self.sync_every)


@dataclass(frozen=True)
class WARPAnchor(Method):
    r"""Makes the KL term's reference an exponential average of the policy (part 1 of WARP).

    .. math:: \theta_{reference} \leftarrow (1 - \mu)\,\theta_{reference} + \mu\,\theta \quad\text{at every step}

    The paper gives :math:`\mu` as 0.01 in its algorithm and set-up and as 0.1 in section 4.1; 0.01 is taken here.

    Args:
        mu: :math:`\mu`, share of the policy at each step, in [0, 1].
    """

    name: ClassVar[str] = "warp_anchor"
    title: ClassVar[str] = "WARP's anchor"
    source: ClassVar[str] = "Ramé et al. 2024, arXiv:2406.16768, part 1"
    summary: ClassVar[str] = "the reference of the KL term is an exponential average of the policy"
    acts: ClassVar[frozenset[Site]] = frozenset({"between"})

    mu: float = 0.01

    def __post_init__(self) -> None:
        _check_settings("mu", self.mu, 1)

    @property
    def writes_reference(self) -> bool:
        return True

    def check(self, context: Context) -> None:
        check_in_time(self.name, "a step's move", 1, context)

    def between(self, model: nn.Module, host: Host = ALONE) -> Between:
        return SyncReferenceState(model, reference_in(host, self.name), share=self.mu, sync_every=1)


def check_in_time(method: str, setting: str, steps: int, context: Context) -> None:
    """Raises `Unsupported` where the reference would first change at the last step, or after it."""
    if context.max_steps is not None and context.first_free(steps) >= context.max_steps:
        raise Unsupported(
            f"{method} would never change the reference: {setting} is {steps}, training has {context.max_steps} steps, "
            f"and no change comes at the last one{context.held}; lower it, or train longer"
        )


def check_steps(name: str, value: object) -> None:
    """Raises `ValueError` unless a setting is a whole number of steps, at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of steps, at least 1, got {value!r}")


def _check_settings(name: str, share: float, sync_every: int) -> None:
    check_fraction(name, share)
    check_steps("sync_every", sync_every)
