"""Methods that act inside the optimizer's step, put around whatever optimizer the trainer makes or was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import Unsupported
from ..method import Method
from ..optim import MergeUpdate, Merging, OnDAREAdamW, Pipeline, plain_name
from ..sites import Host
from ..weights import trainable
from .host import policy

if TYPE_CHECKING:
    from transformers import Trainer

SITES = ("gradient", "update", "displacement")
ORDINARY = {"amsgrad": False, "maximize": False, "capturable": False, "differentiable": False}


def acts_in_step(method: Method) -> bool:
    """True for a method that acts at a site of the optimizer's step."""
    return bool(method.acts & set(SITES))


class InStep:
    """Wraps the trainer's optimizer when the trainer makes it: the parameters are known then, and the groups decided.

    Attributes:
        optimizer: What acts in the step; None before it is made.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.methods: tuple[Method, ...] = ()
        self.optimizer: Any = None
        self._trainer = trainer
        self._inner: Any = None

    def host(self, methods: Sequence[Method]) -> None:
        """Takes on these methods, in this order."""
        self.methods = tuple(methods)
        if self.methods and self._inner is None:
            self._inner = self._trainer.create_optimizer
            self._trainer.create_optimizer = self._create  # type: ignore[method-assign]

    def release(self) -> None:
        """Gives the trainer its own way of making optimizers back."""
        if self._inner is not None:
            del self._trainer.create_optimizer
        self.methods, self._inner, self.optimizer = (), None, None

    def flush(self) -> None:
        """Merges the tail of a cycle, which nothing would merge after the last step."""
        if self.optimizer is not None:
            self.optimizer.flush()

    def settled(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the methods promise of weights that are to be measured and shipped, see `Pipeline.settled`."""
        settle = getattr(self.optimizer, "settled", None)
        if settle is None:
            return {}
        given = {plain_name(name): tensor for name, tensor in weights.items()}
        found = settle(given)
        return {name: found[plain_name(name)] for name in trainable(policy(self._trainer)) if plain_name(name) in found}

    def bind(self, model: nn.Module, host: Host) -> None:
        """Gives the rules that run the model what they need; training begins, and the parameters are what they stay."""
        for rule in getattr(self.optimizer, "rules", ()):
            if hasattr(rule, "bind"):
                rule.bind(model, host)

    def readings(self) -> dict[str, float]:
        """What the rules measured in the last step, for the log; all processes must call it."""
        found: dict[str, float] = {}
        for rule in getattr(self.optimizer, "rules", ()):
            if hasattr(rule, "read"):
                found |= rule.read()
        return found

    def _create(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        made = self._inner(*args, **kwargs)
        bare = made
        while bare is not self.optimizer and hasattr(bare, "optimizer"):
            bare = bare.optimizer
        if bare is self.optimizer:  # this trainer trains again, with ours in accelerate's wrapper
            return made
        model = (args[0] if args else kwargs.get("model")) or self._trainer.model
        assert isinstance(model, nn.Module)
        _name_parameters(made, model)
        self.optimizer = around(made, self.methods)
        self._trainer.optimizer = self.optimizer
        return self.optimizer


def around(base: torch.optim.Optimizer, methods: Sequence[Method]) -> torch.optim.Optimizer:
    """The optimizer with the methods in its step.

    One update rule on a fresh AdamW of torch's becomes merged AdamW, which is faster and rounds once; everything else
    is a `Pipeline` around the optimizer as it is.
    """
    rules: dict[str, list[Any]] = {site: [] for site in SITES}
    for method in methods:
        for site in SITES:
            if site in method.acts:
                rules[site].append(getattr(method, f"{site}_rule")())
    only = rules["update"][0] if len(rules["update"]) == 1 and not rules["gradient"] + rules["displacement"] else None
    if isinstance(only, MergeUpdate) and _is_plain_adamw(base):
        return _merging_adamw(base, only)
    return Pipeline(base, gradient=rules["gradient"], update=rules["update"], displacement=rules["displacement"])


def _is_plain_adamw(base: torch.optim.Optimizer) -> bool:
    ordinary = all(group.get(key, value) == value for group in base.param_groups for key, value in ORDINARY.items())
    return type(base) is torch.optim.AdamW and not base.state and ordinary


def _merging_adamw(base: torch.optim.Optimizer, rule: MergeUpdate) -> OnDAREAdamW:
    taken = ("lr", "betas", "eps", "weight_decay", *(["initial_lr"] if "initial_lr" in base.param_groups[0] else []))
    groups = [
        {"params": list(zip(group["param_names"], group["params"])), **{key: group[key] for key in taken}}
        for group in base.param_groups
        if group["params"]  # of adapters nothing decays, or nothing does not
    ]
    settings = {field.name: rule.defaults[field.name] for field in fields(Merging)}
    return OnDAREAdamW(groups, delta=rule.delta, **settings)


def _name_parameters(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Writes the parameters' names into the groups: identity is the name, since FSDP2 exchanges the objects."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        if "param_names" not in group:
            if unknown := [tuple(p.shape) for p in group["params"] if id(p) not in names]:
                raise Unsupported(
                    f"the optimizer holds parameters that are not the model's (first: shape {unknown[0]}); build it "
                    "from trainer.model.named_parameters(), after the trainer"
                )
            group["param_names"] = [names[id(parameter)] for parameter in group["params"]]
