"""What is averaged has to be a model's own tensors, and not an adapter's factors."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import Unsupported

# how PEFT names what a layer is multiplied with, or whose product is added to it: LoRA with DoRA, VeRA, LoHa, LoKr, OFT
FACTORS = ("lora_", "vera_", "hada_", "lokr_", "oft_", "boft_")


def check_whole(*names: Iterable[str]) -> None:
    r"""Refuses the names of models with adapters.

    The average of two adapters' factors is another model than the average of the two models that they define:
    :math:`(B_1 + B_2)(A_1 + A_2) / 4` is not :math:`(B_1 A_1 + B_2 A_2) / 2`.

    Args:
        names: Of one model's tensors, each.
    Raises:
        Unsupported: One belongs to an adapter; it says what to do.
    """
    for name in (name for model in names for name in model):
        if any(part.startswith(FACTORS) for part in name.split(".")):
            raise Unsupported(
                f"{name!r} is an adapter's, whose factors averaged one by one make another model than the average of"
                " the merged ones: merge_and_unload() first, or give `average` or `merge` checkpoints, MODEL+ADAPTER"
            )
