"""What the tensors of a LoRA adapter's file mean for the tensors of its base model."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import CheckpointError
from ._check import EMBEDDINGS
from ._files import FileSource
from ._lazy import HEADS
from ._source import Kind

PREFIX = "base_model.model."
PART = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?P<bias>\.bias)?(\.weight)?")
CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # architectures whose linear layers lie transposed
# settings that make the model something else than base + scaling * B * A, with what it is then
OTHERWISE = {
    "use_dora": "DoRA rescales every row of the sum by a trained magnitude",
    "alora_invocation_tokens": "it acts on some positions only, which no weights do",
    "layer_replication": "it repeats layers of the base",
    "target_parameters": "it adapts stacked parameters (experts), whose file names do not say which",
    "trainable_token_indices": "it trains single rows of the embedding",
    "use_qalora": "it acts on pooled inputs",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "it routes between adapters",
    "kasa_config": "it changed the base's weights when it was made",
    "monteclora_config": "its factors are sampled",
    "ensure_weight_tying": "it ties adapters of two modules",
}
PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")  # initialisations that leave the base alone
REMEDY = "load it with PEFT, merge_and_unload() and save the result as a model"


class Factors(NamedTuple):
    """The adapter's tensors for one of the base's: up is B, down is A."""

    up: str
    down: str
    scaling: float
    transposed: bool


@dataclass
class Parts:
    """By the base's tensor names: what is replaced, and what is added."""

    kinds: dict[str, Kind]
    config: dict[str, Any]
    replaced: dict[str, str] = field(default_factory=dict)
    factors: dict[str, Factors] = field(default_factory=dict)
    biases: dict[str, tuple[str, float]] = field(default_factory=dict)

    @property
    def changed(self) -> set[str]:
        return {*self.replaced, *self.factors, *self.biases}


def read_parts(base: FileSource, adapter: FileSource) -> Parts:
    """Sorts an adapter's tensors by what they change.

    Raises:
        CheckpointError: A tensor, a shape or a setting that does not fit.
    """
    _check_settings(adapter)
    parts = Parts(dict(base.kinds), dict(base.config))
    pairs: dict[tuple[str, str], dict[str, str]] = {}
    for key in adapter.kinds:
        name = key.removeprefix(PREFIX)
        match = PART.fullmatch(name)
        if match and match["bias"]:
            module = match["module"]
            parts.biases[_find(base, adapter, f"{module}.bias", key)] = key, _scaling(adapter, module, key)
        elif match:
            pairs.setdefault((match["module"], match["embedding"] or ""), {})[match["side"]] = key
        elif "lora_" in name or "token_adapter" in name or "trainable_tokens" in name:
            raise _refused(adapter, f"it holds {key!r}, which is no part of a plain LoRA")
        else:
            plain = name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
            parts.replaced[_find(base, adapter, plain, key)] = key
    for target, key in parts.replaced.items():
        _replace(parts, base, adapter, target, key)
    for (module, embedding), sides in pairs.items():
        _add(parts, base, adapter, module, bool(embedding), sides)
    _untie(parts, base, adapter)
    return parts


def _check_settings(adapter: FileSource) -> None:
    config = adapter.config
    if config.get("peft_type") != "LORA":
        raise _refused(adapter, f"it is of the kind {config.get('peft_type')}, and only LORA is read here")
    for setting, why in OTHERWISE.items():
        if config.get(setting):
            raise _refused(adapter, f"{setting} is set: {why}")
    start = config.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        raise _refused(adapter, f"init_lora_weights is {start!r}, which changed the base's weights when it was made")


def _replace(parts: Parts, base: FileSource, adapter: FileSource, target: str, key: str) -> None:
    old, new = base.kind(target), adapter.kinds[key]
    vocabulary = target.endswith((*EMBEDDINGS, *HEADS)) and len(new.shape) == 2
    if new.shape != old.shape and not (vocabulary and new.shape[1:] == old.shape[1:]):
        raise _unfit(adapter, base, f"{key!r} has shape {new.shape} and {target!r} has {old.shape}")
    parts.kinds[target] = Kind(old.dtype, new.shape)
    if new.shape != old.shape and "vocab_size" in parts.config:  # the embedding was resized
        parts.config["vocab_size"] = new.shape[0]


def _add(
    parts: Parts, base: FileSource, adapter: FileSource, module: str, embedding: bool, sides: dict[str, str]
) -> None:
    if len(sides) != 2:
        raise _refused(adapter, f"of the two factors of {module!r} only {next(iter(sides.values()))!r} is there")
    target = _find(base, adapter, f"{module}.weight", sides["A"])
    kind = parts.kinds.get(target) or base.kind(target)
    down, up = (adapter.kinds[sides[side]].shape for side in "AB")
    if len(down) != 2 or len(up) != 2 or len(kind.shape) != 2:
        raise _refused(adapter, f"{module!r} is no linear layer or embedding (its factors have shapes {down} and {up})")
    full = up[0], down[1]
    transposed = embedding or _transposed(base, adapter, module, full)
    if up[1] != down[0] or kind.shape != (full[::-1] if transposed else full):
        raise _unfit(
            adapter, base, f"the factors of {module!r} have shapes {up} and {down} and {target!r} has {kind.shape}"
        )
    parts.kinds[target] = kind
    parts.factors[target] = Factors(sides["B"], sides["A"], _scaling(adapter, module, sides["A"]), transposed)


def _transposed(base: FileSource, adapter: FileSource, module: str, full: tuple[int, int]) -> bool:
    """Whether a linear layer lies as (in, out). PEFT turns ``fan_in_fan_out`` on or off at the last module that it saw
    it to be wrong for, so that the setting is asked only where neither the shape nor the architecture says it.
    """
    kind = base.kind(_find(base, adapter, f"{module}.weight", module))
    if full[0] != full[1]:
        return kind.shape == full[::-1]
    if base.config.get("model_type") in CONV1D:
        return not f"{module}.weight".endswith(HEADS)
    return bool(adapter.config.get("fan_in_fan_out"))


def _scaling(adapter: FileSource, module: str, key: str) -> float:
    config = adapter.config
    rank = _pattern(adapter, "rank_pattern", module, config.get("r"))
    alpha = _pattern(adapter, "alpha_pattern", module, config.get("lora_alpha"))
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise _refused(adapter, f"r is {rank!r} and lora_alpha {alpha!r}")
    shape = adapter.kinds[key].shape
    if len(shape) == 2 and shape[0] != rank:
        raise _refused(adapter, f"{key!r} has shape {shape}, and its configuration says rank {rank}")
    return float(alpha / rank**0.5 if config.get("use_rslora") else alpha / rank)


def _pattern(adapter: FileSource, setting: str, module: str, otherwise: Any) -> Any:
    """The value of the first pattern that ends where the module's name ends, as PEFT looks it up."""
    try:
        for pattern, value in (adapter.config.get(setting) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
    except (re.error, AttributeError):
        raise _refused(adapter, f"{setting} is not a mapping of patterns to numbers") from None
    return otherwise


def _find(base: FileSource, adapter: FileSource, name: str, key: str) -> str:
    """The base's tensor of a name; the prefix of the whole model (``model.``, ``transformer.``) may be missing."""
    if name in base:
        return name
    found = [other for other in base.kinds if other.endswith(f".{name}") and other.count(".") == name.count(".") + 1]
    found += [short] if (short := name.partition(".")[2]) in base.kinds else []
    if len(found) != 1:
        raise _unfit(adapter, base, f"{key!r} changes {name!r}, which the base does not have")
    return found[0]


def _untie(parts: Parts, base: FileSource, adapter: FileSource) -> None:
    """Names both ends of tied weights where the adapter changes one of them; the forward pass knows two then."""
    head = HEADS[1] if base.config.get("model_type") == "gpt_neox" else HEADS[0]
    ends = [name for name in parts.changed if name.endswith((*EMBEDDINGS, *HEADS))]
    if any(name.endswith(EMBEDDINGS) for name in ends) and _has_head(base) and base.tied_to(head):
        parts.kinds.setdefault(head, base.kind(head))
        parts.config["tie_word_embeddings"] = False
    elif any(base.tied_to(name) for name in ends):
        parts.config["tie_word_embeddings"] = False
    elif ends and not any(name.endswith(EMBEDDINGS) for name in parts.kinds):
        raise _refused(adapter, f"it changes {ends[0]!r}, which the base also uses as its embedding")


def _has_head(base: FileSource) -> bool:
    """Whether the base calculates logits: a model for other ends has an embedding and no head that is tied to it."""
    names = base.config.get("architectures") or [""]
    return not names[0] or any(word in names[0] for word in ("CausalLM", "LMHead", "ConditionalGeneration"))


def _unfit(adapter: FileSource, base: FileSource, why: str) -> CheckpointError:
    return CheckpointError(f"the adapter {adapter.label} does not fit the base model {base.label}: {why}")


def _refused(adapter: FileSource, why: str) -> CheckpointError:
    return CheckpointError(f"the adapter {adapter.label} cannot be read as weights: {why}; {REMEDY}")
