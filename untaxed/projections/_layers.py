"""Which linear layers of a model are protected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ..errors import SpecError, Unsupported, nearest
from ..optim import plain_name

BLOCKS, MLP = "blocks", "mlp"
Layers = str | Sequence[str]


def check_layers(layers: Any) -> None:
    """Raises `ValueError` unless these are "blocks", "mlp" or shell patterns of names."""
    words = [layers] if isinstance(layers, str) else list(layers) if isinstance(layers, list | tuple) else [None]
    if not words or not all(isinstance(word, str) and word for word in words):
        raise ValueError(f"layers must be 'blocks', 'mlp' or shell patterns of layers' names, got {layers!r}")


def linear_layers(model: nn.Module, layers: Layers = BLOCKS) -> dict[str, nn.Linear]:
    """The chosen linear layers by plain name.

    Args:
        model: Any module.
        layers: "blocks": all within numbered blocks (``model.layers.3.…``), so neither embeddings nor the output layer;
            "mlp": those of them whose name contains "mlp", as NSPO's released code has it; or shell patterns, such as
            ``"*.down_proj"``.
    Raises:
        SpecError: A pattern meets no linear layer.
        Unsupported: The model has none within blocks, its linear layers belong to adapters, or the weight of one is
            tied to another module's or computed from other parameters.
    """
    if hasattr(model, "peft_config"):
        raise Unsupported(
            "the weights that inputs meet are those of adapters and of what they adapt together, which a projection of "
            "an adapter's tensors does not protect; train all weights, or protect abilities with ogpsa"
        )
    found = {plain_name(name): module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    within = {name: layer for name, layer in found.items() if any(part.isdigit() for part in name.split("."))}
    if layers in (BLOCKS, MLP):
        chosen = {name: layer for name, layer in within.items() if layers == BLOCKS or "mlp" in name}
        if not chosen:
            raise Unsupported(
                f"{type(model).__name__} has no nn.Linear in numbered blocks{' called mlp' if layers == MLP else ''}, "
                f"of {len(found)} linear layers; name them with `layers`: shell patterns such as '*.fc1'"
            )
        _check_tied(model, chosen)
        return chosen
    patterns = [layers] if isinstance(layers, str) else list(layers)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in found):
            known = {f"*.{name.rpartition('.')[2]}" for name in found}
            raise SpecError(f"layers: no linear layer is called {pattern!r}{nearest(pattern, known)}")
    chosen = {name: layer for name, layer in found.items() if any(fnmatchcase(name, one) for one in patterns)}
    _check_tied(model, chosen)
    return chosen


def _check_tied(model: nn.Module, chosen: Mapping[str, nn.Linear]) -> None:
    """Raises `Unsupported` where a chosen layer's weight is no parameter of its own: another module's, too, or made."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(plain_name(name))
    for name, layer in chosen.items():
        if id(layer.weight) not in owners:
            raise Unsupported(
                f"the weight of {name!r} is computed from others (parametrized); leave it out of `layers`"
            )
        if others := [other for other in owners[id(layer.weight)] if other != name]:
            raise Unsupported(
                f"the weight of {name!r} is that of {others[0]!r} as well (tied), which is given other inputs; "
                f"leave {name!r} out of `layers`"
            )


def check_rank(layers: Mapping[str, nn.Linear], rank: int) -> None:
    """Raises `SpecError` where more directions are to be protected than a layer has inputs."""
    for name, layer in layers.items():
        if rank > layer.in_features:
            raise SpecError(
                f"rank {rank} is asked for, and the layer {name!r} has {layer.in_features} inputs; lower `value`, or "
                "name wider layers with `layers`"
            )
