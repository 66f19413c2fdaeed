"""Measuring without a trace: everything that training can notice is put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

SETTINGS = ("padding_side", "truncation_side")


@contextmanager
def undisturbed(model: Any, tokenizer: Any = None) -> Iterator[None]:
    """Puts the model into evaluation mode and restores, also after an exception, whatever may have changed.

    Restored: the random states of python, numpy, torch and CUDA; train or eval mode of every submodule; ``use_cache``
    of the model's config and generation config; the tokenizer's padding and truncation sides.

    Example:
        >>> model = torch.nn.Dropout()
        >>> with undisturbed(model):
        ...     model(torch.ones(2))
        tensor([1., 1.])
        >>> model.training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    settings = list(_settings(model, tokenizer))
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        model.eval()
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        for module, training in modes:
            module.training = training
        for owner, name, value in settings:
            setattr(owner, name, value)


@contextmanager
def own_precision(model: Any) -> Iterator[None]:
    """Runs a model in the precision of its weights.

    accelerate wraps the `forward` of what it trains in autocast (bf16, the default on a GPU); the models that a policy
    is compared with (initial, variants, checkpoints read again) have no such wrapper.
    """
    if not hasattr(model, "_original_forward"):
        yield
        return
    wrapped, model.forward = model.forward, model._original_forward
    try:
        yield
    finally:
        model.forward = wrapped


def _settings(model: Any, tokenizer: Any) -> Iterator[tuple[Any, str, Any]]:
    for owner in (getattr(model, "config", None), getattr(model, "generation_config", None)):
        if owner is not None and hasattr(owner, "use_cache"):
            yield owner, "use_cache", owner.use_cache
    for name in SETTINGS:
        if hasattr(tokenizer, name):
            yield tokenizer, name, getattr(tokenizer, name)
