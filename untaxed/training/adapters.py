"""A policy that trains an adapter: how it is built, and the plain model that its weights come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Unsupported, require
from ..method import Method


def adapter_of(methods: Sequence[Method]) -> Any:
    """PEFT's configuration of the adapter that one of the methods trains; None where all weights are trained."""
    given = next((given for method in methods if (given := method.adapter()) is not None), None)
    if given is None:
        return None
    return require("peft", extra="train").LoraConfig(**given, task_type="CAUSAL_LM")


def trains_adapter(methods: Sequence[Method]) -> bool:
    """Whether one of the methods trains an adapter."""
    return any(method.adapter() is not None for method in methods)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws an adapter's first weights from a seed, and gives the random state back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def check_adapter(model: nn.Module, method: Method) -> None:
    """Raises `Unsupported` unless a model trains the adapter of a method."""
    wanted = method.adapter()
    if wanted is None:
        return
    config = getattr(model, "peft_config", {}).get("default")
    targets = wanted["target_modules"]
    alike = config is not None and (config.r, config.lora_alpha) == (wanted["r"], wanted["lora_alpha"])
    if alike and isinstance(targets, list):
        alike = set(config.target_modules) == set(targets)  # type: ignore[union-attr]
    if not alike:
        given = ", ".join(f"{key}={value!r}" for key, value in wanted.items())
        raise Unsupported(f"{method.name} is decided when a trainer is built: give it peft_config=LoraConfig({given})")


def check_targets(model: nn.Module, config: Any) -> None:
    """Raises `Unsupported` where an adapter could not be merged into a plain model's weights."""
    if isinstance(config.target_modules, str):  # all linear layers but the output
        return
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for target in config.target_modules:
        for tied in names.values():
            if len(tied) > 1 and any(f".{name}".endswith(f".{target}.weight") for name in tied):
                raise Unsupported(
                    f"lora cannot be merged on {target!r}: {' and '.join(tied)} are one tensor, and an adapter would "
                    "change one of them alone; leave it out of targets"
                )


class Merged:
    """A plain model with the weights that an adapter makes of its base: to be measured and saved.

    The policy is not touched: merging into it and taking it out again would not give its bits back.

    Args:
        load: Loads the base as a plain model; called once, when the first adapter comes.
    """

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load
        self._plain: Any = None

    @torch.no_grad()
    def __call__(self, model: Any) -> Any:
        """The model itself where it trains no adapter, else the plain one, with its present weights."""
        if not hasattr(model, "peft_config"):
            return model
        if self._plain is None:
            self._plain = self._load()
        weights = merged_weights(model)
        for name, parameter in self._plain.named_parameters():
            parameter.copy_(weights[name])
        return self._plain


@torch.no_grad()
def merged_weights(model: Any) -> Mapping[str, Tensor]:
    """The weights of a model with its adapter merged, by the names of the plain model; those that it leaves alone are
    its own tensors.
    """
    base = model.get_base_model()
    weights = {
        name.replace(".base_layer.", "."): tensor.detach()
        for name, tensor in base.named_parameters()
        if ".lora_" not in name
    }
    for name, layer in _adapted(base):
        weights[f"{name}.weight"] = layer.base_layer.weight + layer.get_delta_weight("default")
    return weights


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, layer in model.named_modules():
        if hasattr(layer, "base_layer") and hasattr(layer, "get_delta_weight"):
            yield name, layer
