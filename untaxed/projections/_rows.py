"""OGPSA and NSPO as rows of the methods' table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import nn

from ..errors import SpecError, Unsupported
from ..method import Method
from ..optim import check_in_step
from ..sites import INPUTS, Context, Need, Site
from ..values import typed
from ._layers import BLOCKS, check_rank, linear_layers
from ._losses import Loss, check_sets
from ._nullspace import NullSpace, NullSpaceSite
from ._orthogonal import Orthogonal, OrthogonalSite, Scope, check_orthogonal
from ._protect import Protect, check_prompts
from ._settings import check_choices, check_count
from ._span import When
from ._subspace import Threshold


@dataclass(frozen=True, kw_only=True)
class Protects(Method):
    """What the rows below share: data that is given elsewhere, and a site that a setting chooses; abstract."""

    @property
    def _need(self) -> Need:
        (need,) = self.needs
        return need

    @property
    def _field(self) -> str:
        return INPUTS[self._need]

    @property
    def needed(self) -> frozenset[Need]:
        return self.needs if getattr(self, self._field) is None else frozenset()

    def settings(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name != self._field}

    def check(self, context: Context) -> None:
        check_in_step(self, context)
        if self.needed - context.given:
            raise Unsupported(f"{self.name} needs {self._field}: give them, as {type(self).__name__}({self._field}=…)")


@dataclass(frozen=True, kw_only=True)
class OGPSA(Protects):
    r"""Takes out of every gradient what it has in common with gradients of reference losses.

    .. math:: g \leftarrow g - U U^\top g, \qquad U = \mathrm{GramSchmidt}(\nabla L_1, \dots, \nabla L_M)

    Args:
        refresh_every: Optimizer steps after which the reference gradients are taken anew, at the current weights; they
            are also taken before the first step.
        scope: "tensor": every tensor of the gradient by itself (the released code); "model": the whole (the paper).
        when: "always", or "conflict": only what would raise a reference loss.
        loss: Of the reference rows: "ce", "preference", or in code a function of the model and a batch.
        site: "gradient": before the optimizer; "update": what the optimizer makes of the gradient.
        tolerance: Share of a reference gradient's norm that must be left beside the others for a direction of its own.
        samples: At most so many rows of each set.
        max_tokens: Longer rows are cut.
        beta: Of the loss "preference".
        reference_sets: In code: name -> rows. In a study they come from `data.reference_sets`.
    """

    name: ClassVar[str] = "ogpsa"
    title: ClassVar[str] = "OGPSA"
    source: ClassVar[str] = "Sun et al. 2026, arXiv:2602.07892"
    summary: ClassVar[str] = "the gradient loses its component along gradients of reference losses"
    acts: ClassVar[frozenset[Site]] = frozenset({"gradient", "update"})
    needs: ClassVar[frozenset[Need]] = frozenset({"reference_sets"})
    given_elsewhere: ClassVar[frozenset[str]] = frozenset({"reference_sets"})

    refresh_every: int = 5
    scope: Scope = "tensor"
    when: When = "always"
    loss: Any = "ce"
    site: OrthogonalSite = "gradient"
    tolerance: float = 1e-6
    samples: int | None = 200
    max_tokens: int = 512
    beta: float = 0.1
    reference_sets: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_orthogonal(**{key: getattr(self, key) for key in ORTHOGONAL})
        if self.reference_sets is not None:
            check_sets(self.reference_sets, self.loss)
        _act_at(self, self.site)

    @classmethod
    def setting(cls, key: str, value: Any, where: str) -> Any:
        if key == "loss":
            return typed(f"{where}.loss", Loss, value)
        if key == "reference_sets":
            raise SpecError(f"{where} has no setting 'reference_sets'; a study's are in data.reference_sets")
        return super().setting(key, value, where)

    def settings(self) -> dict[str, Any]:
        given = super().settings()
        if callable(self.loss):
            given["loss"] = getattr(self.loss, "__qualname__", type(self.loss).__qualname__)
        return given

    @property
    def promises(self) -> frozenset[Site]:
        return frozenset({self.site})

    def check(self, context: Context) -> None:
        super().check(context)
        if callable(self.loss) and self.reference_sets is None:
            raise Unsupported("ogpsa with a loss of your own needs batches for it: OGPSA(reference_sets={…}, loss=…)")

    def _rule(self) -> Orthogonal:
        settings = {key: getattr(self, key) for key in ORTHOGONAL}
        return Orthogonal(self.reference_sets, **settings)

    def gradient_rule(self) -> Orthogonal:
        """`Orthogonal`; in a loop of your own call its `bind(model, Host(tokenizer=…))`."""
        return self._rule()

    def update_rule(self, delta: Any = None) -> Orthogonal:
        return self._rule()


ORTHOGONAL = ("loss", "refresh_every", "scope", "when", "site", "tolerance", "samples", "max_tokens", "beta")


@dataclass(frozen=True, kw_only=True)
class NSPO(Protects):
    r"""Keeps what the linear layers do to general inputs, which they are given on general prompts.

    .. math:: W \leftarrow W_0 + (W - W_0)(I - U U^\top)

    Args:
        every: Optimizer steps between projections; the last step is always followed by one.
        threshold: Which directions of a layer's input are protected: "energy" kept (GPM), "relative" to the largest
            eigenvalue (NSPO's code), "multiple_of_min" (Adam-NSCL), "absolute" (AlphaEdit), "rank" or "free_share".
        value: Of the threshold; None: 0.9, 5e-5, 10 or 0.02 in this order.
        layers: "blocks": all linear layers in blocks; "mlp": those called so (the released code); or shell patterns.
        site: "displacement" (the released code), "update" or "gradient" (the paper's formula); the latter two act at
            every step.
        samples: At most so many prompts.
        max_tokens: Longer prompts are cut.
        continuations: Tokens of the model's own that are added to each prompt, at most.
        accumulate: "float32" or "float64": in which precision the covariance goes on from batch to batch.
        seed: Of the continuations.
        prompts: In code: general texts. In a study they come from `data.general_prompts`.
    """

    name: ClassVar[str] = "nspo"
    title: ClassVar[str] = "NSPO"
    source: ClassVar[str] = "Niu et al. 2025, arXiv:2512.11391"
    summary: ClassVar[str] = "weights move only where the inputs of general prompts do not look"
    acts: ClassVar[frozenset[Site]] = frozenset({"gradient", "update", "displacement"})
    needs: ClassVar[frozenset[Need]] = frozenset({"general_prompts"})
    given_elsewhere: ClassVar[frozenset[str]] = frozenset({"prompts"})

    every: int = 5
    threshold: Threshold = "energy"
    value: float | None = None
    layers: str | list[str] = BLOCKS
    site: NullSpaceSite = "displacement"
    samples: int | None = 1024
    max_tokens: int = 512
    continuations: int = 0
    accumulate: Literal["float32", "float64"] = "float32"
    seed: int = 0
    prompts: Sequence[str] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        _ = self.protect  # checks the settings
        check_count("every", self.every)
        check_choices(site=(self.site, NullSpaceSite))
        if self.prompts is not None:
            check_prompts(self.prompts)
        _act_at(self, self.site)

    @property
    def protect(self) -> Protect:
        """The part of the settings that says how subspaces are found."""
        return Protect(**{one.name: getattr(self, one.name) for one in dataclasses.fields(Protect)})

    @classmethod
    def setting(cls, key: str, value: Any, where: str) -> Any:
        if key == "prompts":
            raise SpecError(f"{where} has no setting 'prompts'; a study's are in data.general_prompts")
        return super().setting(key, value, where)

    @property
    def promises(self) -> frozenset[Site]:
        """An update within the free directions keeps the displacement there, unless that is changed by itself."""
        return frozenset({"update", "displacement"} if self.site == "update" else {self.site})

    def check_model(self, model: nn.Module) -> None:
        layers = linear_layers(model, self.layers)
        if self.threshold == "rank":
            check_rank(layers, int(self.value or 0))

    def check(self, context: Context) -> None:
        super().check(context)
        if context.lora:
            raise Unsupported(
                "nspo holds whole weights to what general inputs see of them, and only an adapter is trained; train "
                "all weights, or protect abilities with ogpsa, which takes adapters"
            )
        if self.site == "displacement" and context.max_steps is not None and self.every >= context.max_steps > 1:
            raise Unsupported(
                f"nspo would project after the last step only: every is {self.every}, training has {context.max_steps} "
                "steps; lower every"
            )

    def _rule(self) -> NullSpace:
        return NullSpace(self.prompts, self.protect, every=self.every, site=self.site)

    def gradient_rule(self) -> NullSpace:
        return self._rule()

    def update_rule(self, delta: Any = None) -> NullSpace:
        return self._rule()

    def displacement_rule(self) -> NullSpace:
        """`NullSpace`; in a loop of your own call its `bind(model, Host(tokenizer=…))`."""
        return self._rule()


def _act_at(method: Method, site: Site) -> None:
    """Of the sites at which a row can act, the one that these settings choose."""
    object.__setattr__(method, "acts", frozenset({site}))
