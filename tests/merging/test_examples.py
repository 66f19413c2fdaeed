"""Every example in the docstrings of `untaxed.merging` runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import numpy as np
import pytest
import torch

import untaxed.merging


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(untaxed.merging.__path__)])
def test_examples_run(name: str) -> None:
    module = importlib.import_module(f"untaxed.merging.{name}")
    assert doctest.testmod(module, extraglobs={"torch": torch, "np": np}).failed == 0
