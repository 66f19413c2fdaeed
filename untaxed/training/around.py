"""What a trainer shows to the methods that act between its steps: a `Host` made of its own parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import Unsupported
from ..method import Host, Setting
from ..weights import local
from .host import policy
from .steering import log_beside, scale_lr, stop

if TYPE_CHECKING:
    from transformers import Trainer

REFERENCE, OWN = "ref", "default"  # the adapters as TRL names them: it looks for "ref" at every reference pass


def host_of(
    trainer: Trainer,
    *,
    drift: Callable[[], Mapping[str, float]] | None = None,
    reset: Callable[[], None] | None = None,
) -> Host:
    """The parts of a trainer that methods may touch; looked up when they are used, since trainers replace them.

    Args:
        trainer: When training begins.
        drift: What the drift meter last read.
        reset: Asks the attached method that resets.
    """
    processing: Any = trainer.processing_class
    return Host(
        optimizer=trainer.optimizer,
        reference=lambda: reference_tensors(trainer),
        beta=_beta(trainer) if isinstance(getattr(trainer, "beta", None), float | int) else None,
        kl=lambda: _last_kl(trainer),
        drift=drift,
        log=lambda values: log_beside(trainer, values),
        tokenizer=getattr(processing, "tokenizer", processing),  # a processor's, of a model that also sees
        scale_lr=lambda factor: scale_lr(trainer, factor),
        stop=lambda: stop(trainer),
        reset=reset,
    )


@torch.no_grad()
def reference_tensors(trainer: Trainer) -> dict[str, Tensor]:
    """The tensors of the KL term's reference by the policy's names, local shards, to be written in place.

    An adapter's reference is the base model; it gets a second adapter, which starts as the policy stands and which TRL
    then takes.

    Raises:
        Unsupported: There is no reference, it was precomputed, or its tensors do not lie as the policy's do.
    """
    if getattr(trainer.args, "precompute_ref_log_probs", False) or getattr(trainer.args, "precompute_ref_logps", False):
        raise Unsupported("the reference's log-probabilities were computed beforehand: it cannot change any more")
    reference = getattr(trainer, "ref_model", None)
    model = trainer.accelerator.unwrap_model(policy(trainer))
    if reference is None and hasattr(model, "peft_config"):
        return _adapter(model)
    if reference is None:
        raise Unsupported(
            f"{type(trainer).__name__} keeps no reference model here (beta is {getattr(trainer, 'beta', None)}); "
            "with beta above 0 it has one"
        )
    theirs = dict(trainer.accelerator.unwrap_model(reference).named_parameters())
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            if name not in theirs or local(theirs[name]).shape != local(parameter).shape:
                raise Unsupported(f"the reference model has no tensor that lies as the policy's {name!r} does")
            found[name] = local(theirs[name].detach())
    return found


def _adapter(model: Any) -> dict[str, Tensor]:
    named: Callable[[], dict[str, nn.Parameter]] = lambda: dict(model.named_parameters())  # noqa: E731
    own = {name: tensor for name, tensor in named().items() if tensor.requires_grad}
    if REFERENCE not in model.peft_config:
        if OWN not in model.peft_config:
            raise Unsupported(f"the policy's adapter is called {list(model.peft_config)}; name it {OWN!r}")
        model.add_adapter(REFERENCE, model.peft_config[OWN])
        model.set_adapter(OWN)
        everything = named()
        for name, tensor in own.items():
            everything[_of_reference(name)].copy_(tensor)
    everything = named()
    for name in own:
        everything[_of_reference(name)].requires_grad_(False)
    return {name: local(everything[_of_reference(name)].detach()) for name in own}


def _of_reference(name: str) -> str:
    return name.replace(f".{OWN}.", f".{REFERENCE}.")


def _beta(trainer: Any) -> Setting:
    def put(value: float) -> None:
        trainer.beta = value

    return Setting(lambda: float(trainer.beta), put)


def _last_kl(trainer: Any) -> float | None:
    metrics: Mapping[str, Any] = getattr(trainer, "_metrics", {})
    values = metrics.get("train", {}).get("kl")
    return float(values[-1]) if values else None
