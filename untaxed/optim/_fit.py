"""Whether two checkpoints have a delta, and whether it fits what is trained; every refusal names what, where, why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Unsupported, UsageError, meant
from ._sides import WEIGHTS, Side, of_adapter, plain_name

if TYPE_CHECKING:
    from ._delta import Delta

Shape = tuple[int, ...]
MANY = 8  # so many names, most of which fit nothing, are another architecture and no list of mistakes
ADAPTER_KEYS = (
    "peft_type", "r", "lora_alpha", "target_modules", "modules_to_save", "rank_pattern", "alpha_pattern", "use_rslora",
    "use_dora", "fan_in_fan_out", "base_model_name_or_path",
)  # fmt: skip
TWO_WAYS = (
    "either train the SFT stage as an adapter on the same base too and give both adapters' directories, or merge the "
    "adapter (merge_and_unload) and align all weights"
)


def check_comparable(initial: Side, pretrained: Side) -> None:
    """Raises where the two are not two stages of one model.

    Raises:
        Unsupported: Only one is an adapter.
        UsageError: Adapters of different forms, or most tensors have no counterpart.
    """
    if initial.adapter != pretrained.adapter:
        one, other = (initial, pretrained) if initial.adapter else (pretrained, initial)
        raise Unsupported(
            f"{one.label} is a LoRA adapter and {other.label} is not, so they have no tensors in common and no delta; "
            + TWO_WAYS
        )
    if initial.config and pretrained.config and initial.adapter:
        _check_adapter_configs(initial, pretrained)
    _check_architectures(initial, pretrained)


def _check_architectures(initial: Side, pretrained: Side) -> None:
    ours, faults = _weights(initial), pair_faults(initial, pretrained)
    faults = {name: why for name, why in faults.items() if name in ours}
    absent = [name for name in ours if pretrained.find(name) is None]
    largest = max(len(ours), len(_weights(pretrained)))
    both = f"{initial.title} and {pretrained.title}"
    remedy = "give the model that initial was trained from"
    if largest >= MANY and 2 * (len(ours) - len(absent)) < largest:
        first = "".join(f"; first: {faults[name]}" for name in absent[:1])
        shared = f"they share {len(ours) - len(absent)} of {largest} tensor names"
        raise UsageError(f"{both} are of different architectures: {shared}{first}; {remedy}")
    if largest >= MANY and 2 * len(faults) > len(ours):
        count, first = f"{len(faults)} of {len(ours)} tensors do not fit", next(iter(faults.values()))
        raise UsageError(f"{both} are of different sizes: {count}, first: {first}; {remedy}")
    ours_count, theirs_count = (_layers(_weights(side)) for side in (initial, pretrained))
    for prefix in ours_count.keys() & theirs_count.keys():
        if ours_count[prefix] != theirs_count[prefix]:
            counts = f"{ours_count[prefix]} and {theirs_count[prefix]} of {prefix}*"
            raise UsageError(f"{both} are of different architectures: they have {counts}; {remedy}")
    if len(faults) == len(ours):
        why = "; ".join(faults.values()) or "there is no floating-point tensor"
        raise UsageError(f"{both} have no delta: {why}")


def _layers(names: Iterable[str]) -> dict[str, int]:
    """How many numbered modules stand under each name: layers, experts."""
    found: dict[str, set[str]] = {}
    for name in names:
        for match in re.finditer(r"\.(\d+)\.", name):
            found.setdefault(name[: match.start() + 1], set()).add(match[1])
    return {prefix: len(numbers) for prefix, numbers in found.items()}


def pair_faults(initial: Side, pretrained: Side) -> dict[str, str]:
    """Why tensors of initial have no delta, by name."""
    found = {name: _pair_fault(name, initial, pretrained) for name in initial.shapes}
    return {name: why for name, why in found.items() if why}


def check_delta(delta: Delta, parameters: Mapping[str, Sequence[int]]) -> None:
    """Checks that every trained tensor has a delta of its shape, and that the delta is not 0.

    Args:
        delta: From `as_delta` or `sft_delta`.
        parameters: The *whole* shape of every trained tensor by its full name; wrappers' parts of a name do no harm.
    Raises:
        UsageError: Lists every tensor that does not fit.
        Unsupported: Adapters are trained and the delta is of whole weights, or the other way round.
    """
    _check_adapters(delta, parameters)
    faults = {name: why for name, shape in parameters.items() if (why := _fault(delta, name, tuple(shape)))}
    absent = [name for name in faults if delta.find(name) is None]
    if len(absent) >= MANY and 2 * len(absent) > len(parameters):
        raise UsageError(
            f"{len(absent)} of {len(parameters)} trained tensors have no delta, first: {faults[absent[0]]}; the delta "
            f"is of {delta.label}: give the two stages that the trained model comes from"
        )
    if faults:
        raise UsageError("the delta does not fit the trained weights: " + "; ".join(faults.values()))
    refuse_zero(delta, parameters)


def refuse_zero(delta: Delta, names: Iterable[str]) -> None:
    """Raises where a delta is 0 in every tensor named: there would be nothing to merge with."""
    if any(delta.any(name) for name in names):
        return
    raise UsageError(
        f"the delta is zero everywhere ({delta.label}): there would be nothing to merge, only updates made smaller; "
        "give the model from before SFT as pretrained, or set merge_weight to 0 for sparse updates alone"
    )


def _check_adapters(delta: Delta, names: Iterable[str]) -> None:
    trains_adapter = any(map(of_adapter, names))
    if trains_adapter and not delta.adapter:
        raise Unsupported(f"the policy trains a LoRA adapter and the delta is of whole weights; {TWO_WAYS}")
    if delta.adapter and not trains_adapter:
        raise Unsupported(
            "the delta is between LoRA adapters and the policy trains whole weights; merge both adapters into their "
            "base and give the two merged directories, or train an adapter of the same form"
        )


def _check_adapter_configs(initial: Side, pretrained: Side) -> None:
    if initial.config.get("peft_type") != "LORA":
        raise Unsupported(
            f"{initial.label} is an adapter of type {initial.config.get('peft_type')}; a delta knows LORA"
        )
    different = [key for key in ADAPTER_KEYS if _setting(initial, key) != _setting(pretrained, key)]
    if different:
        pairs = (
            f"{key} is {initial.config.get(key)!r} in initial and {pretrained.config.get(key)!r} in pretrained"
            for key in different
        )
        raise UsageError(
            f"{initial.label} and {pretrained.label} are adapters of different forms: {'; '.join(pairs)}; a delta "
            "needs two stages of one adapter on one base"
        )


def _setting(side: Side, key: str) -> object:
    """A setting of an adapter; empty ones are equal, order does not count, a local base is its place."""
    value = side.config.get(key) or None
    if key == "base_model_name_or_path" and value and Path(value).exists():
        return str(Path(value).resolve())
    return sorted(value) if isinstance(value, list) else value


def _weights(side: Side) -> list[str]:
    return [name for name, dtype in side.dtypes.items() if dtype in WEIGHTS]


def _pair_fault(name: str, initial: Side, pretrained: Side) -> str | None:
    other = pretrained.find(name)
    if other is None:
        return f"{name!r} is missing from {pretrained.role}{meant(name, pretrained.shapes)}"
    for side, place in ((initial, name), (pretrained, other)):
        if side.dtypes[place] not in WEIGHTS:
            return (
                f"{name!r} is {_dtype_name(side, place)} in {side.role}, not a floating-point weight of 16 bits or more"
            )
    return _mismatch(name, initial.shapes[name], initial.role, pretrained.shapes[other], pretrained.role)


def _dtype_name(side: Side, name: str) -> str:
    return str(side.dtypes[name] or "of a dtype that torch lacks").removeprefix("torch.")


def _mismatch(name: str, shape: Shape, where: str, other: Shape, there: str) -> str | None:
    """Says how two shapes differ; of two vocabularies, which rows."""
    if shape == other:
        return None
    if len(shape) == len(other) > 1 and shape[1:] == other[1:]:
        low, high = sorted((shape[0], other[0]))
        return (
            f"{name!r} has {shape[0]} rows in {where} and {other[0]} in {there}: rows {low} to {high - 1} have no "
            "counterpart (resize both vocabularies alike, or do not train this tensor)"
        )
    return f"{name!r} has shape {shape} in {where} and {other} in {there}"


def _fault(delta: Delta, name: str, shape: Shape) -> str | None:
    found = delta.find(name)
    if found is not None:
        return _mismatch(name, shape, "the trained model", delta.shapes[found], "the delta")
    return delta.why_not(name) or f"{name!r} has no delta{meant(plain_name(name), delta.shapes)}"
