from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("worker", ["sharded_worker", "gathered_worker", "terms_worker"])
def test_methods_under_ddp_and_fsdp2_equal_one_process(tiny_initial: Path, tmp_path: Path, worker: str) -> None:
    """Two gloo processes; the laws are asserted in the worker."""
    for backend in ("ddp", "fsdp2"):
        (tmp_path / backend).mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    network = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(Path(__file__).with_name(f"{worker}.py")), str(tiny_initial), str(tmp_path)]
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **network, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
