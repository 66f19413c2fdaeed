"""Experience replay: texts of pretraining or SFT are learned along, beside the algorithm's own loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..checks import check_number
from ..sites import LossTerm, Need
from ._losses import negative_log_likelihood
from ._on_texts import OnTexts, check_batch, check_strength

BATCH = 8  # texts an optimizer step


@dataclass(frozen=True, kw_only=True)
class Replay(OnTexts):
    r"""Adds the negative log-likelihood of texts that the model should not forget.

    .. math:: L \leftarrow L + c\,\frac{1}{N} \sum_t -\log p(x_t | x_{<t})

    on ``batch_size`` texts at every optimizer step, the mean over all their N predicted tokens. Or, with ``share``
    :math:`s` in place of ``coefficient`` and ``batch_size``: as many texts as keep their tokens at that share of all
    that the policy learns from, each token with the weight of one of the algorithm's tokens (see `LossTerm`).

    A text's end is learned with it, where the tokenizer has an end-of-text token; its first token is not predicted,
    unless the tokenizer itself puts a token before it. A text longer than the model's context is left out with a
    warning that counts them.

    Args:
        coefficient: :math:`c`, at least 0: the weight of a nat a token. 1 unless there is a share.
        batch_size: Texts an optimizer step, over all processes and micro-batches. 8 unless there is a share.
        share: :math:`s`, in (0, 1). The algorithm's tokens are counted with all that its batch repeats: prompt and
            answer of both answers of a pair, prompt and completion of every sample; padding is not. The paper's
            :math:`\lambda` is :math:`s / (1 - s)`.
        seed: Of the order of the texts.
        texts: In code: the texts. In a study its data give them.
    """

    name: ClassVar[str] = "replay"
    title: ClassVar[str] = "Experience replay"
    source: ClassVar[str] = (
        "Lin et al. 2024, arXiv:2309.06256, section 2; Ouyang et al. 2022 (PPO-ptx), arXiv:2203.02155"
    )
    summary: ClassVar[str] = (
        "texts of pretraining or SFT are learned along, as a second loss or as a share of the tokens"
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"replay"})
    given_elsewhere: ClassVar[frozenset[str]] = frozenset({"texts"})
    field: ClassVar[str] = "texts"
    asked: ClassVar[Need] = "replay"

    coefficient: float | None = None
    batch_size: int | None = None
    share: float | None = None
    seed: int = 0
    texts: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share is None:
            for name, default in (("coefficient", 1.0), ("batch_size", BATCH)):
                if getattr(self, name) is None:
                    object.__setattr__(self, name, default)
            check_strength("coefficient", self.coefficient)
            check_batch(self.batch_size)
            return
        check_number("share", self.share)
        if not 0 < self.share < 1:
            raise ValueError(f"share must be in (0, 1), got {self.share}")
        if self.coefficient is not None or self.batch_size is not None:
            raise ValueError("share says how many texts are read and how much they count; leave the others out")

    def loss_term(self) -> LossTerm:
        return LossTerm(
            self.texts,
            "replay: text",
            negative_log_likelihood,
            coefficient=self.coefficient,
            batch_size=self.batch_size,
            share=self.share,
            seed=self.seed,
        )
