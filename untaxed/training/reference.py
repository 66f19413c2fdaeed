"""The reference of a trainer's KL term: whether it can change, and its tensors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..callbacks._reference import counterparts
from ..errors import Unsupported
from ..method import Method
from ..weights import local, reshard
from .algorithms import ALGORITHMS, algorithm
from .host import backend, policy

if TYPE_CHECKING:
    from transformers import Trainer

REFERENCE, OWN = "ref", "default"  # the adapters as TRL names them: it looks for "ref" at every reference pass
FIXED = {  # arguments that must be off where the reference changes, with the reason
    "precompute_ref_log_probs": "its log-probabilities are computed beforehand, so it cannot change any more",
    "precompute_ref_logps": "its log-probabilities are computed beforehand, so it cannot change any more",
    "sync_ref_model": "TRL moves it as well",
}


def check_reference(trainer: Trainer, methods: Sequence[Method]) -> None:
    """Raises `Unsupported` where a method is to change a reference or a KL term that is not there or cannot change."""
    args: Any = trainer.args
    beta = getattr(trainer, "beta", getattr(args, "beta", None))
    _check_beta(methods, beta)
    if not (method := _writer(methods)):
        return
    _check_values(method, {key: getattr(args, key, None) for key in FIXED} | {"beta": beta})
    model = trainer.model
    if getattr(trainer, "ref_model", None) is not None:
        return
    if not hasattr(model, "peft_config"):
        raise Unsupported(f"{method.name} needs a reference model, and {type(trainer).__name__} keeps none")
    kinds = {kind.__name__ for kind in type(trainer).__mro__}
    if not kinds & {row.trainer for row in ALGORITHMS.values()}:
        raise Unsupported(
            f"{method.name} needs a KL term's reference, and {type(trainer).__name__} is not known to have one"
        )
    _check_adapter(method, model, sharded=backend(trainer) == "fsdp2")


def check_reference_arguments(name: str, arguments: Mapping[str, Any], methods: Sequence[Method]) -> None:
    """The part of `check_reference` that an algorithm's arguments tell, before any trainer is built."""
    given = {**arguments, **{key: value for one in methods for key, value in one.arguments().items()}}
    fields = {field.name: field.default for field in dataclasses.fields(algorithm(name).config_class())}
    values = {key: given.get(key, fields.get(key)) for key in (*FIXED, "beta")}
    _check_beta(methods, values["beta"])
    if method := _writer(methods):
        _check_values(method, values)


@torch.no_grad()
def reference_tensors(trainer: Trainer) -> dict[str, Tensor]:
    """The tensors of the KL term's reference by the policy's names, local shards, to be written in place.

    An adapter's reference is the base model; it gets a second adapter, which starts as the policy stands and which TRL
    then takes.

    Raises:
        Unsupported: There is no reference, or its tensors do not lie as the policy's do.
    """
    reference = getattr(trainer, "ref_model", None)
    model: Any = trainer.accelerator.unwrap_model(policy(trainer))
    if reference is not None:
        return counterparts(model, trainer.accelerator.unwrap_model(reference))
    if not hasattr(model, "peft_config"):
        raise Unsupported(f"{type(trainer).__name__} keeps no reference model; with beta above 0 it has one")
    reshard(model)
    own = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if REFERENCE not in model.peft_config:
        _add_adapter(model, own)
    tensors = dict(model.named_parameters())
    return {name: local(tensors[_of_reference(name)].detach()) for name in own}


def _writer(methods: Sequence[Method]) -> Method | None:
    """The method that changes the reference, if any; that there is one alone is `check_together`'s."""
    return next((method for method in methods if method.writes_reference), None)


def _check_beta(methods: Sequence[Method], beta: float | None) -> None:
    """A beta that follows a target is multiplied at every step, and 0 stays 0."""
    following = [method.name for method in methods if getattr(method, "kl_target", None) is not None]
    if following and beta == 0:
        raise Unsupported(f"{following[0]}: kl_target multiplies beta, and beta is 0; set beta above 0")


def _check_values(method: Method, values: Mapping[str, Any]) -> None:
    for key, reason in FIXED.items():
        if values.get(key):
            raise Unsupported(f"{method.name} works on the reference, and with {key} {reason}; set {key} to false")
    if values.get("beta") == 0:
        raise Unsupported(f"{method.name} works on the reference, and with beta 0 there is none; set beta above 0")


def _check_adapter(method: Method, model: Any, *, sharded: bool) -> None:
    if OWN not in model.peft_config:
        raise Unsupported(f"the policy's adapter is called {', '.join(model.peft_config)}; name it {OWN!r}")
    config = model.peft_config[OWN]
    if getattr(config, "bias", "none") != "none" and REFERENCE not in model.peft_config:
        raise Unsupported(
            f"{method.name} keeps the reference as a second adapter, and PEFT has one alone where biases are trained; "
            "train the adapter with bias='none'"
        )
    if sharded and REFERENCE not in model.peft_config:
        raise Unsupported(
            f"{method.name} needs a second adapter, which must be there before FSDP2 shards the policy; give the "
            "trainer a get_peft_model(…) in place of peft_config, then TRL adds it"
        )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and OWN not in name.split("."):
            raise Unsupported(
                f"{method.name} keeps the reference as a second adapter, and the policy also trains {name!r}, which no "
                "adapter holds; train the adapter alone (bias='none')"
            )


def _add_adapter(model: Any, own: Sequence[str]) -> None:
    """Gives the model the reference's adapter, equal to its own; random states and the base weights stay."""
    config = copy.deepcopy(model.peft_config[OWN])
    # some ways of starting an adapter change the base weights, and dropout would make the reference a random one
    for setting, off in (("init_lora_weights", False), ("lora_dropout", 0.0)):
        if hasattr(config, setting):
            setattr(config, setting, off)
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices=list(devices)):
        model.add_adapter(REFERENCE, config)
    tensors: dict[str, nn.Parameter] = dict(model.named_parameters())
    for name in own:
        tensors[_of_reference(name)].copy_(tensors[name])


def _of_reference(name: str) -> str:
    """The name of an adapter's tensor in the reference's adapter."""
    before, _, after = f".{name}.".rpartition(f".{OWN}.")
    return f"{before}.{REFERENCE}.{after}".strip(".")
