"""LoRA as a row of the methods' table: in place of all weights, matrices of low rank are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..checks import check_number
from ..errors import Unsupported
from ..method import Method
from ..sites import Context, Site

Targets = Literal["all-linear"] | tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LoRA(Method):
    r"""Trains a product of two narrow matrices beside each weight matrix, and leaves all weights as they are.

    .. math:: W = W_{initial} + \frac{\alpha}{r} B A, \qquad B: (out, r),\ A: (r, in),\ B = 0 \text{ at the start}

    The reference of the KL term is the policy without its adapter, so that no second model is kept. In a study the
    policy is measured and saved with its adapter merged, as any other model.

    Args:
        rank: :math:`r`, at least 1.
        alpha: :math:`\alpha`, above 0.
        targets: "all-linear": every linear layer but the output layer; or the last parts of layers' names, as PEFT
            takes them, such as ``[q_proj, v_proj]``.
        learning_rate: In the place of the algorithm's, since adapters often want a larger one; None: the algorithm's.
    """

    name: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    source: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685; Lin et al. 2024, arXiv:2309.06256, section 2"
    summary: ClassVar[str] = "in place of all weights a change of low rank is trained"
    acts: ClassVar[frozenset[Site]] = frozenset({"model"})

    rank: int = 16
    alpha: float = 16.0
    targets: Targets = "all-linear"
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank must be a whole number, at least 1, got {self.rank!r}")
        for name in ("alpha", "learning_rate"):
            if (value := getattr(self, name)) is not None:
                check_number(name, value)
                if value <= 0:
                    raise ValueError(f"{name} must be above 0, got {value}")
        if self.targets != "all-linear":
            if isinstance(self.targets, str) or not self.targets:
                raise ValueError(f"targets must be 'all-linear' or a list of layers' names, got {self.targets!r}")
            object.__setattr__(self, "targets", tuple(self.targets))

    def check(self, context: Context) -> None:
        if context.algorithm is None:
            raise Unsupported("lora acts during training, and given checkpoints are not trained; leave it out")

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "targets": self._listed}  # as JSON gives it back

    def adapter(self) -> dict[str, Any]:
        return {"r": self.rank, "lora_alpha": self.alpha, "target_modules": self._listed}

    @property
    def _listed(self) -> str | list[str]:
        return self.targets if isinstance(self.targets, str) else list(self.targets)

    def arguments(self) -> dict[str, Any]:
        return {} if self.learning_rate is None else {"learning_rate": self.learning_rate}
