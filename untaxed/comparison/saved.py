"""A saved model read with a suite in a process of its own: how a policy is measured that cannot be read as it lies.

The process gets its request on standard input, writes the values to a file, and says on standard error why it cannot.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import measuring
from ..checkpoints import check_model_dir, load_model, load_tokenizer
from ..errors import RunFailed, SpecError, UntaxedError
from ..measuring import Subject
from ..studies.store import read_json, write_json
from .suite_file import Loaded, load_suite

LAUNCHED = (
    *("RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "TORCH_NCCL_"),
    *("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_"),
)  # beginnings of what launchers tell their processes: one that is alone must not wait for the others
ROOM = 1.5  # times the weights' size that must be free on the GPU; else the CPU reads
ENTRY_BYTES = 4  # models are read in float32


class SavedReading:
    """A process that reads a saved model; `wait` for its values, `close` in any case.

    Args:
        loaded: The suite, from a file or by the name of an embedded world.
        folder: Holds the model as ``policy``; gets the process's files.
        keys: The measures wanted, such as ``abilities.piqa``; on validation.
    """

    def __init__(self, loaded: Loaded, folder: Path, keys: Sequence[str]) -> None:
        self._out, self._log = folder / "values.json", folder / "log.txt"
        request = {
            **{"suite": loaded.source, "sets": list(loaded.sets), "keys": list(keys)},
            "contents": {key: loaded.contents[key] for key in keys},
            **{"model": str(folder / "policy"), "out": str(self._out)},
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHED)}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from untaxed.comparison.saved import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C in the terminal reaches the training, which closes this
            )
        assert self._process.stdin is not None
        with self._process.stdin as stream:
            stream.write(json.dumps(request).encode())

    def wait(self, seconds: float) -> dict[str, float] | None:
        """The values by key, or None where the process needs longer.

        Raises:
            RunFailed: The process failed; with the last that it said.
        """
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        if code:
            raise RunFailed(f"the suite could not be read on the saved policy: {self._why(code)}")
        values: dict[str, float] = read_json(self._out)
        return values

    def close(self) -> None:
        """Ends the process where it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _why(self, code: int) -> str:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        if code > 0:
            return lines[-1] if lines else f"its process ended with exit code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"its process was killed by {signal.Signals(-code).name}{hint}"


def serve() -> None:
    """The inside of the process."""
    request = json.load(sys.stdin)
    try:
        values = _values(request)
    except UntaxedError as error:
        sys.exit(" ".join(str(error).split()))
    write_json(Path(request["out"]), values)


def _values(request: Mapping[str, Any]) -> dict[str, float]:
    loaded = load_suite(request["suite"], request["sets"])
    for key, content in request["contents"].items():
        if loaded.contents.get(key) != content:
            raise SpecError(f"{request['suite']}: {key} is another one than when training began; put it back")
    path = Path(request["model"])
    model: Any = load_model(path)
    subject = Subject(model.to(_device(path)), load_tokenizer(path), loaded.suite)
    found = measuring.measure(subject, "validation", request["keys"]).values
    return {f"{group}.{name}": value for group in found for name, value in found[group].items()}


def _device(path: Path) -> torch.device:
    """The GPU where the model fits beside what training keeps there, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    size = ENTRY_BYTES * sum(math.prod(shape) for shape in check_model_dir(path).values())
    free, _ = torch.cuda.mem_get_info()
    return torch.device("cuda" if free >= ROOM * size else "cpu")
