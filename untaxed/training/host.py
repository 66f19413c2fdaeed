"""The trainer that methods are attached to: what it trains, how its weights lie in memory, what it can host."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import Unsupported
from ..method import Method
from ..sites import Context
from ..weights import trainable
from .adapters import check_adapter
from .algorithms import ALGORITHMS
from .held_out import find_held_out

if TYPE_CHECKING:
    from transformers import Trainer

HOSTED = {"model", "loss", "gradient", "update", "displacement", "between"}
BACKENDS = {"plain", "ddp", "fsdp2"}
NEEDED = ("state", "args", "model", "callback_handler", "add_callback")  # what makes a trainer one to attach to


def policy(trainer: Trainer) -> nn.Module:
    """The model that is being trained."""
    assert isinstance(trainer.model, nn.Module)
    return trainer.model


def backend(trainer: Trainer) -> str:
    """How the trainer's weights lie in memory: plain, ddp, fsdp2, fsdp1, deepspeed or sharded_at_load."""
    if trainer.is_deepspeed_enabled:
        return "deepspeed"
    if trainer.is_fsdp_enabled or getattr(trainer, "is_fsdp_xla_enabled", False):
        by_rows = any(hasattr(parameter, "placements") for parameter in policy(trainer).parameters())
        return "fsdp2" if by_rows or trainer.accelerator.is_fsdp2 else "fsdp1"  # once it has sharded, the tensors tell
    if getattr(trainer, "is_distributed_loading_by_transformers", False):
        return "sharded_at_load"
    return "ddp" if trainer.args.world_size > 1 else "plain"


def samples_waiting(trainer: Trainer) -> bool:
    """True while completions that the present or an older policy sampled have yet to be learned from (rloo, grpo)."""
    args: Any = trainer.args
    if not hasattr(args, "steps_per_generation"):
        return False
    taken = trainer._step  # type: ignore[attr-defined]  # micro-batches since the (re)start, TRL's own count
    return bool(taken % (args.steps_per_generation * args.num_iterations))


def free_every(trainer: Trainer) -> int:
    """Optimizer steps from one at which no samples wait to the next; 1 where none ever do."""
    args: Any = trainer.args
    if not hasattr(args, "steps_per_generation"):
        return 1
    micro_batches = args.steps_per_generation * args.num_iterations
    return micro_batches // math.gcd(micro_batches, args.gradient_accumulation_steps)


def check_trainer(trainer: object) -> None:
    """Raises `Unsupported` unless this is a trainer, built and not yet training."""
    if isinstance(trainer, type) or not all(hasattr(trainer, name) for name in NEEDED):
        what = f"the class {trainer.__name__}" if isinstance(trainer, type) else type(trainer).__name__
        raise Unsupported(
            f"attach joins methods to a built Trainer of transformers or TRL, got {what}; in a loop of your own, "
            "use the method's own class, such as ElasticResetState(model, …)"
        )
    if trainer.state.global_step or trainer.is_in_train:  # type: ignore[attr-defined]
        raise Unsupported("attach comes before train(); build a new trainer, or attach and resume from a checkpoint")


def check_method(trainer: Trainer, method: object) -> None:
    """Raises `Unsupported` with the reason where a method cannot work in this trainer, or would do nothing there."""
    if not isinstance(method, Method):
        raise Unsupported(
            "attach takes methods with their settings, such as ElasticReset(decay=0.98, reset_every=60), "
            f"got {method!r}"
        )
    _check_sites(method, backend(trainer))
    check_settings(trainer, method)
    if getattr(method, "asks_held_out", False):
        find_held_out(trainer)


def check_settings(trainer: Trainer, method: Method, *, max_steps: int | None = None) -> None:
    """The part of `check_method` that what somebody does to a trainer after `attach` may break.

    Args:
        trainer: As it is now.
        method: One that is attached to it.
        max_steps: Optimizer steps of the training, where they are known better than by the trainer's arguments.
    """
    context = _context(trainer)
    if (method.acts - {"loss"} or method.loss_term()) and not trainable(policy(trainer)):
        raise Unsupported(
            f"{method.name} would do nothing: the trainer's model has no trainable parameter; set requires_grad on "
            "what is trained before you build the trainer"
        )
    method.check(dataclasses.replace(context, max_steps=max_steps or context.max_steps))
    if method.watches and getattr(trainer, "processing_class", None) is None:
        raise Unsupported(f"{method.name} draws texts and needs a tokenizer: build the trainer with processing_class=…")
    check_adapter(policy(trainer), method)
    method.check_model(policy(trainer))
    wanted = method.arguments()
    if any(getattr(trainer.args, key, None) != value for key, value in wanted.items()):
        given = ", ".join(f"{key}={value}" for key, value in wanted.items())
        raise Unsupported(f"{method.name} is an argument of the algorithm itself: build the trainer with {given}")


def _check_sites(method: Method, lies: str) -> None:
    if not method.acts:
        raise Unsupported(f"{method.name} changes nothing in training; leave it out here, it is an arm of studies")
    if "after" in method.acts:
        raise Unsupported(f"{method.name} acts after training: use its function on the saved weights, or a study")
    if "decoding" in method.acts:
        raise Unsupported(
            f"{method.name} acts while models write and trains nothing: it is an arm of studies, and untaxed.decoding "
            "has its functions"
        )
    if foreign := sorted(method.acts - HOSTED):
        raise Unsupported(f"{method.name} acts at {', '.join(foreign)}, which attach does not offer")
    if "between" in method.acts and lies not in BACKENDS:
        raise Unsupported(
            f"{method.name} cannot act under {lies}: the policy's tensors are not whole or not in place "
            "there; use FSDP2, or a method that acts after training on the saved checkpoint"
        )


def check_model(trainer: Trainer) -> None:
    """Raises `Unsupported` where the trainer steps another model than its `model`, which methods act on.

    That is so when `trainer.model` was replaced: a trainer goes on running the model that it was built with.
    """
    run: Any = getattr(trainer, "model_wrapped", None)
    if run is None or run is trainer.model:
        return
    ours, theirs = list(policy(trainer).parameters()), list(run.parameters())
    if len(ours) != len(theirs) or any(a is not b for a, b in zip(ours, theirs, strict=True)):
        raise Unsupported(
            "trainer.model was replaced after the trainer was built, which still runs the old one; build a new trainer "
            "with the new model and attach to that"
        )


def _context(trainer: Trainer) -> Context:
    names = {row.trainer: row.name for row in reversed(ALGORITHMS.values())}
    kinds = [kind.__name__ for kind in type(trainer).__mro__]  # somebody's own trainer is mostly one of TRL's
    known = next((names[kind] for kind in kinds if kind in names), None)
    return Context(
        algorithm=known or kinds[0].removesuffix("Trainer").lower() or "sft",
        max_steps=trainer.args.max_steps if trainer.args.max_steps > 0 else None,
        backend=backend(trainer),
        lora=hasattr(trainer.model, "peft_config"),
        free_every=free_every(trainer),
    )


def warn_low_precision(trainer: Trainer, methods: tuple[Method, ...]) -> None:
    if backend(trainer) == "fsdp2" and trainer.args.bf16:
        return  # accelerate widens them when it shards
    narrow = {str(tensor.dtype) for tensor in trainable(policy(trainer)).values() if tensor.dtype.itemsize < 4}
    if narrow and methods:
        warnings.warn(
            f"the trainable weights are {', '.join(sorted(narrow))} without a float32 master: updates of lr 1e-6 are "
            "mostly lost in rounding; load the model with dtype=torch.float32 and train with bf16=True",
            stacklevel=4,
        )
