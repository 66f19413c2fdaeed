"""One tiny study for all tests of this folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tiny_world import build_world


@pytest.fixture(scope="session")
def world(tiny_initial: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A spec, as plain values; not to be written to."""
    folder = tmp_path_factory.mktemp("world")
    os.environ["UNTAXED_CACHE"] = str(folder / "cache")
    return build_world(tiny_initial, folder)
