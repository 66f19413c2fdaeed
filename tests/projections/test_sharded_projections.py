from __future__ import annotations

from pathlib import Path

from two_processes import run_in_two


def test_projections_under_ddp_and_fsdp2_equal_one_whole_model(tiny_initial: Path, tmp_path: Path) -> None:
    """Two gloo processes; the laws are asserted in the worker."""
    run_in_two(Path(__file__).with_name("projections_worker.py"), tiny_initial, tmp_path)
