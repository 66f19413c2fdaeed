"""Online merging and its relatives as rows of the methods' table: one rule, different settings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..consensus import Consensus
from ..errors import SpecError, Unsupported
from ..method import Method
from ..sites import Context, Need, Site
from ..sparsify import Rescale
from ._merge import DeltaMask, Merging, Pull, Sparsify
from ._online import Direction, MergeUpdate, check_direction
from ._sides import of_adapter

BACKENDS = ("plain", "ddp", "fsdp2")


def check_in_step(method: Method, context: Context) -> None:
    """Refuses where no step can be reached: nothing is trained, or the optimizer sees no parameters."""
    if context.algorithm is None:
        raise Unsupported(f"{method.name} acts during training, and given checkpoints are not trained; leave it out")
    if context.backend not in BACKENDS:
        raise Unsupported(
            f"{method.name} cannot act under {context.backend}: its optimizer sees flat or partial tensors, not the "
            "parameters; use FSDP2, or a method that acts after training on the saved checkpoint"
        )


@dataclass(frozen=True, kw_only=True)
class Merges(Method):
    """What the rows below share; abstract.

    Attributes:
        fixed: The settings of `Merging` that make the row what it is; its fields are the others.
    """

    acts: ClassVar[frozenset[Site]] = frozenset({"update"})
    fixed: ClassVar[dict[str, Any]] = {}

    density: float
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self.merging  # checks the settings

    @property
    def merging(self) -> Merging:
        """All settings of the rule."""
        known = Merging.__dataclass_fields__
        return Merging(**self.fixed, **{key: value for key, value in self.settings().items() if key in known})

    def update_rule(self, delta: Any = None) -> MergeUpdate:
        return MergeUpdate(self.merging, delta)

    def check(self, context: Context) -> None:
        check_in_step(self, context)
        every = self.merging.merge_every
        if context.max_steps is not None and every > context.max_steps:
            raise Unsupported(
                f"{self.name} would never merge: merge_every is {every}, training has {context.max_steps} steps; "
                "lower merge_every"
            )


@dataclass(frozen=True, kw_only=True)
class Pulls(Merges):
    """What the rows with a second term share; abstract."""

    needs: ClassVar[frozenset[Need]] = frozenset({"pretrained"})
    given_elsewhere: ClassVar[frozenset[str]] = frozenset({"delta"})

    merge_weight: float
    merge_every: int = 1
    rescale: Rescale = "none"
    pull: Pull = "constant"
    anchor_at: float = 0.0
    push_every: int = 1
    direction: Direction = "delta"
    delta: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_direction(self.direction)

    @property
    def needed(self) -> frozenset[Need]:
        return self.needs if self.merging.needs_delta and self.delta is None else frozenset()

    @classmethod
    def setting(cls, key: str, value: Any, where: str) -> Any:
        if key == "delta":
            raise SpecError(f"{where} has no setting 'delta'; it is computed from models.initial and models.pretrained")
        return super().setting(key, value, where)

    def settings(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "delta"}

    def update_rule(self, delta: Any = None) -> MergeUpdate:
        return MergeUpdate(self.merging, self.delta if delta is None else delta, direction=self.direction)

    def check(self, context: Context) -> None:
        super().check(context)
        if not self.merging.needs_delta:
            return
        if context.lora and not _of_adapters(self.delta):
            raise Unsupported(
                f"{self.name} merges with the delta of full weights, and only an adapter is trained, for which that "
                "delta does not exist; give the delta between two adapters on one base (sft_delta of both), or merge "
                "after training"
            )
        if self.delta is None and "pretrained" not in context.given:
            raise Unsupported(
                f"{self.name} needs the SFT delta: pass delta=sft_delta(initial, pretrained), or set merge_weight to 0"
            )


@dataclass(frozen=True, kw_only=True)
class OnlineMerging(Pulls):
    r"""Sparsifies every update and merges it with the sparsified SFT delta: all choices open.

    .. math:: \theta \leftarrow \theta + (1-w)\,F(\Delta) \oplus w\,F(\tau)

    Args:
        density: Share of the entries kept, in (0, 1].
        merge_weight: :math:`w`, in [0, 1]; 0: no delta is needed.
        merge_every: Optimizer steps between merges; between them the optimizer runs plainly.
        sparsify: "random", "magnitude", "momentum" or "none".
        consensus: "sum", "sign" or "sign_unweighted".
        rescale: "none" (the paper), "inverse" (the released code) or "l1".
        delta_mask: The delta's random mask: "fresh" every step (the paper) or drawn "once" (the released code).
        clamp: Bound of the rescaled delta's entries; the released code has 1.
        pull: "constant" (the paper), "anchor": towards initial + anchor_at · delta, "unrelaxed": the paper's Eq. 1.
        anchor_at: Where the anchor lies; 0 is initial.
        push_every: The second term acts at every n-th merge with n times its weight.
        direction: "delta", or "random": the control with each tensor's norm and no other information.
        seed: Of the random masks.
        delta: In code: the SFT delta, `sft_delta(initial, pretrained)` or name -> tensor. In a study it is computed.
    """

    name: ClassVar[str] = "online"
    title: ClassVar[str] = "Online merging"
    source: ClassVar[str] = "Lu et al. 2024, arXiv:2405.17931"
    summary: ClassVar[str] = "every update is sparsified and merged with the sparsified SFT delta: all choices open"

    sparsify: Sparsify = "random"
    consensus: Consensus = "sum"
    delta_mask: DeltaMask = "fresh"
    clamp: float | None = None


@dataclass(frozen=True, kw_only=True)
class OnDARE(Pulls):
    """Online merging with random masks and the plain sum: `OnlineMerging` with sparsify "random", consensus "sum"."""

    name: ClassVar[str] = "ondare"
    title: ClassVar[str] = "OnDARE"
    source: ClassVar[str] = "Lu et al. 2024, arXiv:2405.17931"
    summary: ClassVar[str] = "a random part of every update, plus a random part of the SFT delta"
    fixed: ClassVar[dict[str, Any]] = {"sparsify": "random", "consensus": "sum"}

    delta_mask: DeltaMask = "fresh"
    clamp: float | None = None


@dataclass(frozen=True, kw_only=True)
class OnTIES(Pulls):
    """Online merging of the largest entries with elected signs: `OnlineMerging` with sparsify "magnitude".

    The election is weighted ("sign", the paper's) or not ("sign_unweighted", the released code's), which are two
    methods: the second forbids any motion against the delta.
    """

    name: ClassVar[str] = "onties"
    title: ClassVar[str] = "OnTIES"
    source: ClassVar[str] = "Lu et al. 2024, arXiv:2405.17931"
    summary: ClassVar[str] = "the largest entries of every update and of the SFT delta, where their signs agree"
    fixed: ClassVar[dict[str, Any]] = {"sparsify": "magnitude"}

    consensus: Consensus = "sign"


@dataclass(frozen=True, kw_only=True)
class MoFO(Merges):
    """Updates only the entries with the largest first moment, tensor by tensor.

    Args:
        density: Share of each tensor's entries updated at a step, in (0, 1].
        seed: Of the choice among equal moments.
    """

    name: ClassVar[str] = "mofo"
    title: ClassVar[str] = "MoFO"
    source: ClassVar[str] = "Chen et al. 2024, arXiv:2407.20999"
    summary: ClassVar[str] = "only the entries with the largest momentum are updated"
    fixed: ClassVar[dict[str, Any]] = {"sparsify": "momentum"}


@dataclass(frozen=True, kw_only=True)
class UpdateDropout(Merges):
    """Drops a random part of every update: OnDARE without the delta, the control that separates the two.

    Args:
        density: Share of the entries kept, in (0, 1].
        rescale: "none", "inverse" (1/density, which keeps the mean) or "l1".
        seed: Of the masks.
    """

    name: ClassVar[str] = "update_dropout"
    title: ClassVar[str] = "Update dropout"
    source: ClassVar[str] = "Lu et al. 2024, arXiv:2405.17931, with merge weight 0"
    summary: ClassVar[str] = "a random part of every update is dropped: OnDARE without the SFT delta"
    fixed: ClassVar[dict[str, Any]] = {"sparsify": "random"}

    rescale: Rescale = "none"


def _of_adapters(delta: Any) -> bool:
    """Whether a delta, in whatever form it is given, may be one between adapters."""
    if delta is None:
        return False
    names = getattr(delta, "shapes", delta)
    return bool(getattr(delta, "adapter", False)) or "initial" in names or any(map(of_adapter, names))
