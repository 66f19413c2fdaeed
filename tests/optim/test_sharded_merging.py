from __future__ import annotations

from pathlib import Path

from two_processes import run_in_two


def test_merging_under_fsdp2_equals_one_process(tmp_path: Path) -> None:
    """Two gloo processes; the laws are asserted in the worker."""
    run_in_two(Path(__file__).with_name("merging_worker.py"), tmp_path)
