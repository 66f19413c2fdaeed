"""What every test may use: one thread, no network, and a tiny model with a task for it."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ["UNTAXED_CACHE"] = tempfile.mkdtemp(prefix="untaxed-tests-")  # nobody's own
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import pytest
import torch
from tiny import build_model_dir, build_task

from untaxed.training import Task

torch.set_num_threads(1)
atexit.register(shutil.rmtree, os.environ["UNTAXED_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_initial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with its tokenizer; not to be written to."""
    return build_model_dir(tmp_path_factory.mktemp("tiny") / "initial")


@pytest.fixture(scope="session")
def tiny_task(tiny_initial: Path) -> Task:
    """A task that starts from it; nothing is measured."""
    return build_task(tiny_initial)
