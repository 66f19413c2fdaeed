"""Blocks of a model's tensors, found from their names: layers into groups, and a policy for everything else."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from torch import Tensor, nn

from ..errors import UsageError, nearest
from ..weights import address
from ._layers import Place, place
from ._partition import AS_AVERAGE, Block, Partition, Policy, Role, Weighting
from ._whole import check_whole

Blocks = int | Sequence[Sequence[int]] | Mapping[str, str]

NORM = re.compile(r"norm|^ln(_|\d|$)", re.IGNORECASE)
EMBEDDING = re.compile(r"embed(?!_out)|^wte$|^wpe$|^shared$", re.IGNORECASE)
HEAD = re.compile(r"head|^embed_out$|^cls$|^score$|^classifier$|^qa_outputs$", re.IGNORECASE)
ROUTER = re.compile(r"^(gate|router|shared_expert_gate)$")
BIAS = re.compile(r"(^|_)bias$")
MIXING = re.compile(r"att(n|ention)|mixer|mamba|ssm", re.IGNORECASE)  # what mixes tokens, as against the MLP


def partition(
    weights: nn.Module | Mapping[str, Any],
    blocks: Blocks = 3,
    *,
    apart: bool = False,
    policies: Mapping[Role, Policy] | None = None,
    weighting: Weighting = "blocks",
    stack: str | None = None,
) -> Partition:
    """Puts every tensor of a model into one block or under one policy.

    Looks at names and shapes only, so that a module and its directory are cut alike:

    1. The layers are the outermost numbered members of the container that holds most parameters (``model.layers``,
       ``transformer.h``, ``gpt_neox.layers``, ``bert.encoder.layer``); an encoder's and its decoder's are one row of
       layers.
    2. Matrices within layers (linear layers, GPT-2's Conv1D, experts) make up the blocks.
    3. Norms, biases and routers, within layers or not, embeddings, the head and all else have a role, and a policy.

    Args:
        weights: A module, or by name tensors or shapes.
        blocks: Into how many groups of consecutive layers, sizes differing by one at most (26 layers in 3: 8, 9, 9 as
            in the paper); or the groups, each a list of layers; or regular expressions by block name, which are
            searched for in every tensor's name and come before any role.
        apart: Attention and MLP of a group are two blocks. What mixes tokens counts as attention.
        policies: By role, beside the default ``mean``; `AS_AVERAGE` is that default, under which equal ratios are
            plain averaging, and `AS_RELEASED` what the paper's code does: the head at the mean, all else initial.
        weighting: What a block counts in the mean.
        stack: The container, where it is another than the largest.
    Raises:
        UsageError: There are no layers, fewer layers than blocks, or an argument is none of those named.
            `Unsupported`: The model has an adapter.
    Example:
        >>> layers = {f"h.{n}.attn.c_attn.weight": (2, 6) for n in range(4)}
        >>> cut = partition({"wte.weight": (9, 2), **layers, "lm_head.weight": (9, 2)}, 3)
        >>> [(block.name, block.layers) for block in cut.blocks], sorted(cut.rest)
        ([('layer 0', 1), ('layer 1', 1), ('layers 2-3', 2)], ['embedding', 'head'])

    Source: Lin et al. 2024, arXiv:2309.06256, sections 5 and 6.
    Differs: the released code cuts Llama-like models only, into unequal groups (9 of 26 layers: eight of 2, one of 10).
    """
    chosen = _policies(policies or {})
    _known("weighting", weighting, get_args(Weighting))
    shapes, owners = _shapes(weights)
    check_whole(shapes)
    layers = _layers(shapes, stack)
    groups = _by_pattern(blocks, shapes) if isinstance(blocks, Mapping) else _by_layer(blocks, layers, apart)
    roles = {name: _role(name, shape, layers.get(name)) for name, shape in shapes.items()}
    held: dict[str, list[str]] = defaultdict(list)
    rest: dict[Role, list[str]] = defaultdict(list)
    for name in shapes:
        owner = owners[name]  # a tied name goes where the tensor's first name goes
        role, group = roles[owner], groups.get(owner)
        if group is not None and (role is None or isinstance(blocks, Mapping)):
            held[group].append(name)
        else:
            rest[role or "other"].append(name)
    made = [
        _block(name, held[name], shapes, owners, layers)
        for name in dict.fromkeys(groups.values())
        if name in held  # layers without attention, say, have none to average
    ]
    if not made:
        raise UsageError(f"no block holds a tensor; {AS_PATTERNS}")
    return Partition(tuple(made), {role: tuple(names) for role, names in rest.items()}, chosen, weighting)


AS_PATTERNS = "give blocks as regular expressions by name, such as {'all': '.*'}"


def _policies(given: Mapping[Role, Policy]) -> dict[Role, Policy]:
    for role, policy in given.items():
        _known("role", role, get_args(Role))
        _known(f"policy of {role}", policy, get_args(Policy))
    return {**AS_AVERAGE, **given}


def _known(what: str, word: str, words: Sequence[str]) -> None:
    if word not in words:
        raise UsageError(f"unknown {what} {word!r}{nearest(str(word), words)}")


def _shapes(weights: nn.Module | Mapping[str, Any]) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes by name, and for every name the first name of the same tensor."""
    values = weights.state_dict() if isinstance(weights, nn.Module) else weights
    values = {name: value for name, value in values.items() if isinstance(value, Tensor | tuple | list)}
    firsts: dict[Any, str] = {}
    owners = {
        name: firsts.setdefault(address(v) if isinstance(v, Tensor) else name, name) for name, v in values.items()
    }
    return {name: tuple(value.shape if isinstance(value, Tensor) else value) for name, value in values.items()}, owners


def _layers(shapes: Mapping[str, tuple[int, ...]], stack: str | None) -> dict[str, int]:
    """The layer of every tensor that lies in one."""
    places = {name: found for name in shapes if (found := place(name))}
    stacks = {found.stack for found in places.values()}
    sizes: dict[str, int] = defaultdict(int)
    for name, found in places.items():
        sizes[_twin(found.stack)] += math.prod(shapes[name])
    if stack is not None and stack not in stacks:
        raise UsageError(f"no layers stand in {stack!r}{nearest(stack, stacks)}")
    largest = max(sizes, key=lambda twin: sizes[twin], default=None)
    chosen = {name for name in stacks if (name == stack if stack else _twin(name) == largest)}
    inside = {(found.stack, found.layer) for found in places.values() if found.stack in chosen}
    order = {layer: number for number, layer in enumerate(sorted(inside, key=_encoder_first))}
    return {n: order[found.stack, found.layer] for n, found in places.items() if found.stack in chosen}


def _twin(container: str) -> str:
    """What an encoder's and its decoder's container have in common."""
    return re.sub(r"(^|\.)(en|de)coder(?=\.|$)", r"\1coder", container)


def _encoder_first(layer: tuple[str, int]) -> tuple[bool, str, int]:
    return ("encoder" not in layer[0], *layer)


def _inner(name: str, in_layer: bool = True) -> str:
    """A tensor's name within its layer, or its name."""
    found: Place | None = place(name) if in_layer else None
    return found.inner if found else name


def _role(name: str, shape: tuple[int, ...], layer: int | None) -> Role | None:
    """What a tensor is; None: a matrix within a layer."""
    parts = _inner(name, layer is not None).split(".")

    def shows(kind: re.Pattern[str]) -> bool:
        return any(kind.search(part) for part in parts)

    if shows(NORM):
        return "norm"
    if layer is None:
        kinds: list[tuple[Role, re.Pattern[str]]] = [("head", HEAD), ("embedding", EMBEDDING)]
        return next((role for role, kind in kinds if shows(kind)), "bias" if BIAS.search(parts[-1]) else "other")
    if shows(ROUTER):
        return "router"
    if BIAS.search(parts[-1]):
        return "bias"
    return None if len(shape) > 1 else "other"


def _by_layer(blocks: int | Sequence[Sequence[int]], layers: Mapping[str, int], apart: bool) -> dict[str, str]:
    """The group of every tensor within a layer, in the groups' order."""
    count = len(set(layers.values()))
    if not count:
        raise UsageError(f"the tensors' names show no numbered layers; {AS_PATTERNS}")
    groups = _balanced(count, blocks) if isinstance(blocks, int) else _given(count, blocks)
    of_layer = {layer: _title(group) for group in groups for layer in group}
    if not apart:
        return {name: of_layer[layer] for name, layer in _in_order(layers, groups)}
    halves = ("attention", "mlp")
    # Sorted by halves within each group, so that the blocks' order does not hang on the names' order.
    named = [
        (name, of_layer[layer], halves[not MIXING.search(_inner(name))]) for name, layer in _in_order(layers, groups)
    ]
    position = {_title(group): at for at, group in enumerate(groups)}
    return {name: f"{group} {half}" for name, group, half in sorted(named, key=lambda n: (position[n[1]], n[2]))}


def _in_order(layers: Mapping[str, int], groups: Sequence[Sequence[int]]) -> list[tuple[str, int]]:
    position = {layer: at for at, group in enumerate(groups) for layer in group}
    return sorted(layers.items(), key=lambda item: position[item[1]])


def _balanced(layers: int, blocks: int) -> list[list[int]]:
    if isinstance(blocks, bool) or not 1 <= blocks <= layers:
        raise UsageError(f"blocks must be between 1 and the model's {layers} layers, got {blocks}")
    return [list(range(layers * k // blocks, layers * (k + 1) // blocks)) for k in range(blocks)]


def _given(layers: int, groups: Sequence[Sequence[int]]) -> list[list[int]]:
    made = [sorted(group) for group in groups]
    flat = [layer for group in made for layer in group]
    for layer in range(layers):
        if flat.count(layer) != 1:
            raise UsageError(
                f"every layer from 0 to {layers - 1} must stand in one group, and {layer} in {flat.count(layer)}"
            )
    if unknown := [layer for layer in flat if layer not in range(layers)]:
        raise UsageError(f"there is no layer {unknown[0]}; the model's last is {layers - 1}")
    return [group for group in made if group]


def _title(group: Sequence[int]) -> str:
    """Such as ``layers 0-7``, or ``layers 0-1, 6-7`` where they do not follow each other."""
    runs: list[list[int]] = []
    for layer in group:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return f"{'layer' if len(group) == 1 else 'layers'} {', '.join(parts)}"


def _expression(name: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise UsageError(f"the expression of block {name!r} is none: {error}") from None


def _by_pattern(blocks: Mapping[str, str], shapes: Iterable[str]) -> dict[str, str]:
    found: dict[str, list[str]] = {name: [] for name in blocks}
    expressions = {name: _expression(name, pattern) for name, pattern in blocks.items()}
    for tensor in shapes:
        holders = [name for name, expression in expressions.items() if expression.search(tensor)]
        if len(holders) > 1:
            raise UsageError(f"the expressions of blocks {holders[0]!r} and {holders[1]!r} both match {tensor!r}")
        for name in holders:
            found[name].append(tensor)
    for name, tensors in found.items():
        if not tensors:
            raise UsageError(f"the expression of block {name!r}, {blocks[name]!r}, matches no tensor's name")
    return {tensor: name for name, tensors in found.items() for tensor in tensors}


def _block(
    name: str,
    tensors: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    owners: Mapping[str, str],
    layers: Mapping[str, int],
) -> Block:
    own = {owners[tensor] for tensor in tensors}
    found = {tensor: place(tensor) for tensor in own}
    inside = {layers.get(tensor, at and (at.stack, at.layer)) for tensor, at in found.items()} - {None}
    parameters = sum(math.prod(shapes[tensor]) for tensor in own)
    return Block(name, tuple(tensors), max(1, len(inside)), max(1, parameters))
