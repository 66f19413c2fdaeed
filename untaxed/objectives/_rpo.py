"""DPO with the likelihood of the chosen answer beside it, through TRL's own list of losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import Unsupported
from ..method import Method
from ..sites import Context, Site
from ._on_texts import check_strength


@dataclass(frozen=True, kw_only=True)
class RPO(Method):
    r"""Adds the negative log-likelihood of the chosen answers to DPO's loss, through TRL's list of losses.

    .. math:: L = L_{DPO} + \eta\,\frac{1}{N} \sum_t -\log \pi(y^{chosen}_t | x, y_{<t})

    over the N answer tokens of a micro-batch: ``loss_type=["sigmoid", "sft"]``, ``loss_weights=[1.0, η]``. It keeps
    the likelihood of chosen answers, which plain DPO may lower together with that of the rejected ones.

    Args:
        eta: :math:`\eta`, at least 0; 0 is DPO.
    """

    name: ClassVar[str] = "rpo"
    title: ClassVar[str] = "RPO (DPO with the chosen answer's likelihood)"
    source: ClassVar[str] = "Liu et al. 2024, arXiv:2405.16436; Pang et al. 2024, arXiv:2404.19733"
    summary: ClassVar[str] = "the chosen answers' likelihood is learned beside DPO's preferences"
    acts: ClassVar[frozenset[Site]] = frozenset({"loss"})

    eta: float = 0.3

    def __post_init__(self) -> None:
        check_strength("eta", self.eta)

    def check(self, context: Context) -> None:
        if context.algorithm != "dpo":
            raise Unsupported(
                "rpo adds to DPO's loss through TRL's list of losses, which only dpo has open: "
                f"{_why(context.algorithm)}; take replay with the texts to be kept likely"
            )

    def arguments(self) -> dict[str, Any]:
        return {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, float(self.eta)]}


def _why(algorithm: str | None) -> str:
    if algorithm is None:
        return "given checkpoints are not trained"
    if algorithm == "ipo":
        return "ipo is DPO with another loss in that place"
    return (
        f"{algorithm} has no chosen answers beside rejected ones" if algorithm != "sft" else "sft learns nothing else"
    )
