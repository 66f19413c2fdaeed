from __future__ import annotations

from pathlib import Path

import pytest
from two_processes import run_in_two


@pytest.mark.parametrize("worker", ["sharded_worker", "gathered_worker", "terms_worker"])
def test_methods_under_ddp_and_fsdp2_equal_one_process(tiny_initial: Path, tmp_path: Path, worker: str) -> None:
    """Two gloo processes; the laws are asserted in the worker."""
    for backend in ("ddp", "fsdp2"):
        (tmp_path / backend).mkdir()
    run_in_two(Path(__file__).with_name(f"{worker}.py"), tiny_initial, tmp_path)
