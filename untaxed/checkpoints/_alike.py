"""Whether the configurations of two models give the same meaning to the same tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError, short
from ._source import Source

# the same shapes are another function where these differ
DIVISION = (
    "num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads", "head_dim", "num_experts_per_tok",
)  # fmt: skip
# what configures the calculation by tensors that are the same; a difference is worth a sentence
NOTED = (
    "hidden_act", "hidden_activation", "activation_function", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon",
    "rope_theta", "rope_scaling", "rope_parameters", "rotary_pct", "partial_rotary_factor", "sliding_window",
    "max_position_embeddings", "n_positions", "attention_multiplier", "logits_scaling", "final_logit_softcapping",
)  # fmt: skip


def check_alike(parent: Source, lead: Source) -> list[str]:
    """Compares two configurations.

    Returns:
        What differs, and is the leader's in the result, a sentence each.
    Raises:
        CheckpointError: Another architecture, another division into heads, or quantised weights.
    """
    if parent.config.get("quantization_config") is not None:
        raise CheckpointError(
            f"{parent.label} is quantised: its tensors are codes, not weights; merge the model that it was made from"
        )
    own, leads = _flat(parent.config), _flat(lead.config)
    kinds = [str(config.get("model_type", "unknown")) for config in (parent.config, lead.config)]
    if kinds[0] != kinds[1]:
        raise CheckpointError(
            f"{parent.label} is a {kinds[0]} model and {lead.label} a {kinds[1]} model: only models of one "
            "architecture can be merged"
        )
    for key in DIVISION:
        if own.get(key) != leads.get(key) and None not in (own.get(key), leads.get(key)):
            raise CheckpointError(
                f"{parent.label} and {lead.label} do not fit: {key} is {short(own[key])} in the one and "
                f"{short(leads[key])} in the other; only models of one architecture can be merged"
            )
    return [
        f"{key} is {short(own.get(key))} in {parent.label} and {short(leads.get(key))} in {lead.label}, which is taken"
        for key in NOTED
        if own.get(key) != leads.get(key)
    ]


def _flat(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration with that of the language model inside it on top."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, Mapping) else config
