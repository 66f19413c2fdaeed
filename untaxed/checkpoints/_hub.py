"""Models of the Hugging Face hub, as directories."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from ..errors import CheckpointError, last_line, require
from ._check import INDEX, SINGLE, indexed_files
from ._lazy import ADAPTER

HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*(/[\w-][\w.-]*)?)(@(?P<revision>[\w./-]+))?", re.ASCII)
SMALL = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "LICENSE*", "NOTICE*")


def fetch(model: str) -> Path:
    """The directory of a hub model ``owner/name`` or ``owner/name@revision``; its safetensors files are downloaded.

    What is in the hub's cache already is not downloaded again, and with ``HF_HUB_OFFLINE=1`` nothing is.

    Raises:
        CheckpointError: There is no such model, or it cannot be had; in one line.
    """
    match = HUB_ID.fullmatch(model)
    if match is None:
        raise CheckpointError(f"{model} is not a model: there is no such directory, and it is no hub id (owner/name)")
    hub = require("huggingface_hub", extra="train")
    try:
        # first what is small: some models hold their weights twice, under other names
        path = Path(_download(hub, match, SMALL))
        weights = indexed_files(path) if (path / INDEX).is_file() else [SINGLE, ADAPTER]
        return Path(_download(hub, match, weights))
    except CheckpointError:
        raise
    except Exception as error:  # the hub's own kinds, and those of whatever it connects with
        raise CheckpointError(
            f"{model} is not a model: there is no such directory, and the hub does not give it: {last_line(error)}"
        ) from error


def _download(hub: ModuleType, match: re.Match[str], patterns: Sequence[str]) -> str:
    path: str = hub.snapshot_download(
        match["id"], revision=match["revision"], allow_patterns=list(patterns), ignore_patterns=["*/*"]
    )
    return path
