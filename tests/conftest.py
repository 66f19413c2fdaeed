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


LONGEST = (  # files, by what they take: begun first, so that all processes end at about the same time
    *("test_sharded.py", "test_workers.py", "test_members.py", "test_study.py", "test_endings.py", "test_documents.py"),
    *("test_read_apart.py", "test_sharded_projections.py", "test_sharded_merging.py", "test_recipes_like_mergekit.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: names.get(item.path.name, len(names)))


@pytest.fixture(scope="session")
def tiny_initial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with its tokenizer; not to be written to."""
    return build_model_dir(tmp_path_factory.mktemp("tiny") / "initial")


@pytest.fixture(scope="session")
def tiny_task(tiny_initial: Path) -> Task:
    """A task that starts from it; nothing is measured."""
    return build_task(tiny_initial)
