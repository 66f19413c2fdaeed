"""Losses that hold the policy's next-token distributions to initial's, on texts of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, get_args

from ..checks import check_number
from ..errors import nearest
from ..sites import LossTerm, Need
from ._losses import distillation, forward_kl, reverse_kl
from ._on_texts import OnTexts, check_batch, check_strength

Direction = Literal["forward", "reverse"]
On = Literal["general", "own"]
DIRECTIONS = {"forward": forward_kl, "reverse": reverse_kl}


@dataclass(frozen=True, kw_only=True)
class KLLoss(OnTexts):
    r"""Adds the KL between the policy and initial on prompts, exact over the vocabulary.

    .. math:: L \leftarrow L + c\,\frac{1}{N} \sum_t KL_t

    over all N tokens of a step's prompts: at every token the distribution of the next one is compared, after the last
    one that of the answer's first. ``forward`` is KL(initial ‖ policy), which costs most where the policy drops what
    initial would write; ``reverse`` is KL(policy ‖ initial), the direction of the penalty of RLHF. It is 0 at initial,
    where the first step cannot see it. Unlike the algorithm's ``beta`` (the method `kl`) it is no estimate on samples,
    works on any prompts and with any algorithm.

    Args:
        coefficient: :math:`c`, at least 0: the weight of a nat a token.
        direction: "forward" or "reverse".
        on: In a study: "general" prompts of its data, or the alignment's "own".
        batch_size: Prompts an optimizer step, over all processes and micro-batches.
        seed: Of the order of the prompts.
        prompts: In code: the prompts, general ones or the training's own. In a study its data give them.
    """

    name: ClassVar[str] = "kl_loss"
    title: ClassVar[str] = "KL to initial as a loss"
    source: ClassVar[str] = "Ziegler et al. 2019, arXiv:1909.08593; Shenfeld et al. 2025, arXiv:2509.04259"
    summary: ClassVar[str] = "the exact KL to the initial model on prompts, forward or reverse, is added to the loss"
    needs: ClassVar[frozenset[Need]] = frozenset({"general_prompts"})
    given_elsewhere: ClassVar[frozenset[str]] = frozenset({"prompts"})
    field: ClassVar[str] = "prompts"
    asked: ClassVar[Need] = "general_prompts"

    coefficient: float = 1.0
    direction: Direction = "forward"
    on: On = "general"
    batch_size: int = 8
    seed: int = 0
    prompts: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strength("coefficient", self.coefficient)
        check_batch(self.batch_size)
        for name, known in (("direction", get_args(Direction)), ("on", get_args(On))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} cannot be {getattr(self, name)!r}{nearest(str(getattr(self, name)), known)}")

    @property
    def needed(self) -> frozenset[Need]:
        return frozenset({"prompts"}) if self.on == "own" and not self.given else super().needed

    def loss_term(self) -> LossTerm:
        return LossTerm(
            self.prompts,
            "kl_loss: prompt",
            DIRECTIONS[self.direction],
            compares=True,
            coefficient=self.coefficient,
            batch_size=self.batch_size,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class Distill(OnTexts):
    r"""Learning without forgetting: initial's softened distributions are distilled into the policy on general prompts.

    .. math:: L \leftarrow L + c\,\frac{T^2}{N} \sum_t KL(p^{(T)}_{initial,t} \,\|\, p^{(T)}_t), \qquad
        p^{(T)} = \mathrm{softmax}(z / T)

    At :math:`T = 1` it is `KLLoss`, forward, on the same prompts. Above, what is unlikely counts more: the order in
    which initial holds the tokens that it would not write is kept as well.

    Args:
        coefficient: :math:`c`, at least 0.
        temperature: :math:`T`, above 0; LwF takes 2.
        batch_size: Prompts an optimizer step, over all processes and micro-batches.
        seed: Of the order of the prompts.
        prompts: In code: the prompts. In a study its data give them.
    """

    name: ClassVar[str] = "distill"
    title: ClassVar[str] = "Distillation from initial"
    source: ClassVar[str] = "Li & Hoiem 2016 (LwF), arXiv:1606.09282; Lin et al. 2024, arXiv:2309.06256, section 2"
    summary: ClassVar[str] = "initial's distributions, softened by a temperature, are distilled on general prompts"
    needs: ClassVar[frozenset[Need]] = frozenset({"general_prompts"})
    given_elsewhere: ClassVar[frozenset[str]] = frozenset({"prompts"})
    field: ClassVar[str] = "prompts"
    asked: ClassVar[Need] = "general_prompts"

    coefficient: float = 1.0
    temperature: float = 2.0
    batch_size: int = 8
    seed: int = 0
    prompts: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strength("coefficient", self.coefficient)
        check_batch(self.batch_size)
        check_number("temperature", self.temperature)
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")

    def loss_term(self) -> LossTerm:
        return LossTerm(
            self.prompts,
            "distill: prompt",
            partial(distillation, temperature=self.temperature),
            compares=True,
            coefficient=self.coefficient,
            batch_size=self.batch_size,
            seed=self.seed,
        )
