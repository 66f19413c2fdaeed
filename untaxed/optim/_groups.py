"""What an optimizer's groups must say: names for the parameters, and settings that can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from torch import Tensor

from ..checks import check_number
from ..errors import Unsupported
from ._adam import KINDS
from ._rounding import Rounding
from ._sides import plain_name

MASTERS = (None, "float32")
Groups = Sequence[Mapping[str, Any]]


def named(params: Iterable[Any], names: Sequence[str] | None) -> list[Any]:
    """The parameters as torch takes them, with their names where these come apart from them."""
    listed = list(params)
    if names is None:
        return listed
    if listed and isinstance(listed[0], dict | tuple):
        raise ValueError("names go with bare parameters; these are groups or have names already")
    if len(names) != len(listed):
        raise ValueError(f"one name a parameter: got {len(names)} names and {len(listed)} parameters")
    return list(zip(names, listed))


def check_names(groups: Groups) -> None:
    """Raises `ValueError` where two parameters share a name, wrappers' parts left out."""
    names = Counter(plain_name(name) for group in groups for name in group["param_names"])
    if twice := sorted(name for name, count in names.items() if count > 1):
        raise ValueError(f"parameters share the name {twice[0]!r}; names tell them apart, so each needs its own")


def check_saved_names(saved: Groups, groups: Groups) -> None:
    """Raises `ValueError` where a saved state's parameters have other names than the optimizer's."""
    for theirs, ours in zip(saved, groups):
        for before, now in zip(theirs.get("param_names", ()), ours["param_names"]):
            if plain_name(before) != plain_name(now):
                raise ValueError(f"the saved state has {before!r} where this optimizer has {now!r}")


def check_adam(group: Mapping[str, Any]) -> None:
    """Raises `ValueError` for a setting of Adam, of the master weights or of rounding that cannot be."""
    for name in ("eps", "weight_decay"):
        check_number(name, group[name])
    if not isinstance(group["lr"], Tensor):
        check_number("lr", group["lr"])
    beta1, beta2 = group["betas"]
    checks = {
        "lr": (group["lr"] >= 0, "at least 0"),
        "betas": (0 <= beta1 < 1 and 0 <= beta2 < 1, "in [0, 1)"),
        "eps": (group["eps"] >= 0, "at least 0"),
        "weight_decay": (group["weight_decay"] >= 0, "at least 0"),
        "adam": (group["adam"] in KINDS, f"one of {', '.join(KINDS)}"),
        "master": (group["master"] in MASTERS, "None or 'float32'"),
        "rounding": (group["rounding"] in get_args(Rounding), "nearest or stochastic"),
    }
    for name, (fine, words) in checks.items():
        if not fine:
            raise ValueError(f"{name} must be {words}, got {group[name]!r}")
    for name, parameter in zip(group["param_names"], group["params"]):
        if not parameter.is_floating_point():
            kind = str(parameter.dtype).removeprefix("torch.")
            raise Unsupported(f"{name!r} is {kind}: only real floating-point parameters can be merged")


def give_names(groups: list[dict[str, Any]], names: Iterable[str] | None) -> None:
    """Writes the names into the groups, where torch puts those of `named_parameters()`."""
    count = sum(len(group["params"]) for group in groups)
    if names is None:
        if any("param_names" not in group for group in groups):
            raise ValueError(
                "the parameters have no names: build the optimizer from model.named_parameters(), or pass names=[…] "
                "in the order of its parameters"
            )
        return
    given = list(names)
    if len(given) != count:
        raise ValueError(f"names must be one a parameter: {count} parameters, got {len(given)} names")
    for group in groups:
        group["param_names"], given = given[: len(group["params"])], given[len(group["params"]) :]
