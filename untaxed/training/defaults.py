"""Training defaults that hold on the machine at hand."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

LARGE = 500_000_000  # parameters from which activations are recomputed rather than kept


def machine_defaults() -> dict[str, Any]:
    """Config values for this machine; a spec overrides them.

    bfloat16 autocast only on a GPU that has it (weights stay float32), a constant rate after 10 warm-up steps (a
    decaying one leaves resets nothing to recover with), every step logged, nothing reported anywhere, no checkpoint
    and no bar of the trainer's own.
    """
    gpu = torch.cuda.is_available()
    return {
        "use_cpu": not gpu,
        "bf16": gpu and torch.cuda.is_bf16_supported(),
        "activation_checkpointing": False,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 10,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_pin_memory": gpu,
    }


def no_telemetry() -> None:
    """Switches off what TRL and the hub's client would send; a hub's client that is already loaded is told too."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        constants.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]
