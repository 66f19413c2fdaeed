from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from untaxed.errors import StoreError
from untaxed.training.state import read_state, write_state


def state() -> dict[str, Any]:
    """Names with a slash and a dot, empty and scalar tensors, a method without tensors."""
    tensors = {"a/b.weight": torch.randn(3, 2), "empty": torch.zeros(0, 2), "scalar": torch.tensor(1.5)}
    lives = [{"average": tensors, "initial": {"x": torch.ones(1)}, "resets": 2}, {"count": 3}, {"average": {}}]
    return {"methods": [{"name": "m", "decay": 0.5}], "steps_since_reset": 1, "policy": 123, "states": lives}


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    saved = state()
    write_state(tmp_path, saved, rank=0, world=1)
    read = read_state(tmp_path, rank=0, world=1)
    torch.testing.assert_close(read["states"][0].pop("average"), saved["states"][0].pop("average"), rtol=0, atol=0)
    assert read == saved
    assert [file.name for file in tmp_path.iterdir()] == ["rank-0-of-1.safetensors"]


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    write_state(tmp_path, state(), rank=0, world=2)
    with pytest.raises(StoreError, match=r"rank-0-of-1\.safetensors is missing: .* another number of processes"):
        read_state(tmp_path, rank=0, world=1)


def test_a_damaged_state_is_said(tmp_path: Path) -> None:
    write_state(tmp_path, state(), rank=0, world=1)
    file = tmp_path / "rank-0-of-1.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(StoreError, match=r"rank-0-of-1\.safetensors is damaged"):
        read_state(tmp_path, rank=0, world=1)


@pytest.mark.parametrize("note", ["[]", '{"states": 3}', '{"states": [[]]}', '{"states": []}'])
def test_a_state_of_another_shape_is_damaged_too(tmp_path: Path, note: str) -> None:
    save_file({"0/average/x": torch.ones(1)}, tmp_path / "rank-0-of-1.safetensors", metadata={"state": note})
    with pytest.raises(StoreError, match=r"rank-0-of-1\.safetensors is damaged"):
        read_state(tmp_path, rank=0, world=1)


def test_importing_the_training_side_loads_no_trainer() -> None:
    code = "import sys, untaxed.training, untaxed.methods, untaxed.checkpoints\n"
    code += "print([name for name in ('transformers', 'trl', 'datasets', 'accelerate', 'peft') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
