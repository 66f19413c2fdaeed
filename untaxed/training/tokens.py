"""How many tokens the algorithm's own batches of an optimizer step have, before the step is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import Unsupported

if TYPE_CHECKING:
    from transformers import Trainer


def check_countable(trainer: Trainer, method: str) -> None:
    """Raises `Unsupported` where samples of one optimizer step are drawn at several times."""
    args: Any = trainer.args
    if hasattr(args, "steps_per_generation") and args.steps_per_generation % args.gradient_accumulation_steps:
        raise Unsupported(
            f"{method}: share counts the tokens of a step before it is taken, and with steps_per_generation "
            f"{args.steps_per_generation} and gradient_accumulation_steps {args.gradient_accumulation_steps} they are "
            "not all sampled then; make the first a multiple of the second, or give coefficient and batch_size"
        )


def tokens_of_step(trainer: Any, samples: Sequence[Any]) -> Tensor:
    """Tokens of all micro-batches of the step that is beginning, padding left out: ``()``, int64, in this process.

    Pairs count with both answers and the prompt twice, labelled answers with their prompt, on-policy samples with
    theirs; KTO's mismatched pairs, which have no gradient, do not count.

    Args:
        trainer: On-policy ones have sampled when a loss is first asked for, and keep what is not learned from yet.
        samples: What the trainer's data loader gave for the step.
    Raises:
        Unsupported: The batches have no mask that tells tokens from padding.
    """
    if hasattr(trainer.args, "steps_per_generation"):
        steps = trainer.current_gradient_accumulation_steps
        first = trainer._step % trainer.args.steps_per_generation
        samples = trainer._buffered_inputs[first : first + steps]
    total = torch.zeros((), dtype=torch.long, device=trainer.args.device)
    for batch in samples:
        total += sum(mask.sum().to(total.device) for mask in _masks(batch))
    return total


def _masks(batch: Any) -> list[Tensor]:
    for names in (("prompt_mask", "completion_mask"), ("attention_mask",)):
        if isinstance(batch, Mapping) and all(isinstance(batch.get(name), Tensor) for name in names):
            return [batch[name] for name in names]
    raise Unsupported(
        "share counts tokens by a batch's attention_mask, which these batches have not; give coefficient and batch_size"
    )
