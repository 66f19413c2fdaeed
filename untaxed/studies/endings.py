"""How a run ends: complete, complete but for some variants, or failed; what can be used again always stays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import RunFailed, UsageError
from .arms import INITIAL, Chain, RunPlan, described, variant, variant_name
from .events import counted
from .points import Point, Points
from .store import VERSION, Store, remove, write_atomic, write_json

Lacking = dict[str, Any]  # a variant that could not be measured: its name, what it is, and why
NAMED = 2  # as many names stand in a line; of more, the number


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, UsageError | RunFailed) else f"{type(error).__name__}: {text}"


def lack(after: Chain, of: str, why: str) -> Lacking:
    """A variant that could not be measured."""
    return {"name": variant_name(after, of), "variant": variant(after, of), "why": why}


def lacking_in_words(lacking: Iterable[Mapping[str, Any]]) -> str:
    """What is lacking of a run, why, and how to go on."""
    names: dict[str, list[str]] = {}
    for one in lacking:
        names.setdefault(one["why"], []).append(one["name"])
    said = "; ".join(f"{_listed(of)} could not be measured: {why}" for why, of in names.items())
    return f"{said}. What was finished is kept; give the same command again to add the rest"


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {counted(rest, 'more variant')}" if rest > 0 else "")


def save_complete(store: Store, run: RunPlan, points: Points, lacking: Sequence[Lacking] = ()) -> None:
    """Writes the files of a run whose training is complete."""
    directory = store.run(run.key)
    about = {**_about(run), "status": "done", "why": None}
    costs = {"seconds": points.seconds, **(points.outcome or {})}
    points.save(directory, {**about, "methods": described(run.training), **costs, "lacking": list(lacking)})
    remove(directory / "resume")
    if not lacking:
        (directory / "error.txt").unlink(missing_ok=True)


def record_failure(
    store: Store,
    run: RunPlan,
    *,
    why: str,
    keep: Sequence[str],
    details: str = "",
    notes: Sequence[str] = (),
    final: bool = False,
    merging: bool = False,
) -> str:
    """Keeps a run that stopped, with its reason.

    A run whose training is complete stays so, and only lacks variants. Any other has failed; a state to resume from
    stays, with what belongs to it.

    Args:
        why: The reason in one line.
        keep: The kinds of kept checkpoints that variants are made of.
        details: For ``error.txt``.
        notes: Warnings that came up on the way.
        final: Whether a resumed training would fail again, as one that diverged.
        merging: Whether it was about the run's variants of several trainings, or about all else.
    Returns:
        What to tell the user.
    """
    directory = store.run(run.key)
    if details:
        write_atomic(directory / "error.txt", details.encode())
    result, progress = store.result(run.key), Points.load_progress(directory)
    complete = result is not None and result["status"] == "done"
    points = Points(result["points"]) if complete and result else progress
    wanted = run.wanted(keep, merges=merging)
    lacking = [lack(after, of, why) for after, of, name in wanted if name not in points.names()]
    if complete:
        noted = [*noted_otherwise(store, run, keep), *lacking] if merging else lacking
        write_json(directory / "result.json", {**(result or {}), "lacking": noted})
    elif progress.outcome is not None:
        save_complete(store, run, progress, lacking)
    else:
        _write_failed(store, run, why, notes)
    resumable = not final and any((directory / "resume").glob("checkpoint-*"))
    if progress.outcome is None and not resumable:
        _forget(directory, weights=not complete)
    return lacking_in_words(lacking) if lacking and (complete or progress.outcome is not None) else why


def noted_otherwise(store: Store, run: RunPlan, keep: Sequence[str]) -> list[Lacking]:
    """What is noted as lacking of a complete run, its variants of several trainings left aside."""
    merges = {name for _, _, name in run.wanted(keep, merges=True)}
    return [one for one in (store.result(run.key) or {}).get("lacking", []) if one["name"] not in merges]


def _about(run: RunPlan) -> dict[str, Any]:
    """What a result says of which run it is."""
    about = {"version": VERSION, "key": run.key, "seed": run.seed, **({"of": INITIAL} if run.of_initial else {})}
    return about if run.member is None else {**about, "member": {"seed": run.member.seed, "number": run.member.number}}


def whose(result: Mapping[str, Any]) -> str:
    """ "seed 0", "seed 0, member 1": which run of its arm a result is of."""
    if (member := result.get("member")) is None:
        return f"seed {result['seed']}"
    return f"seed {member['seed']}, member {member['number']}"


def _write_failed(store: Store, run: RunPlan, why: str, notes: Sequence[str]) -> None:
    about = {**_about(run), "status": "failed", "why": why}
    costs = {"seconds": None, "train_seconds": None, "peak_bytes": None}
    content = {"methods": described(run.training), "notes": list(notes), "points": [], **costs}
    write_json(store.run(run.key) / "result.json", {**about, **content})


def _forget(directory: Path, *, weights: bool) -> None:
    """Removes what a training left that cannot be gone on with."""
    for name in ("resume", "weights") if weights else ("resume",):
        remove(directory / name)
    for name in ("progress.json", "progress.npz"):
        (directory / name).unlink(missing_ok=True)


# --- weights that are needed and gone ---------------------------------------------------------------------------------


def has_weights(store: Store, key: str, point: Point) -> bool:
    """Whether the weights of a run's checkpoint are there; a given checkpoint's path is absolute and wins."""
    return point["weights"] is not None and (store.run(key) / point["weights"]).is_dir()


def lacks_weights(store: Store, run: RunPlan, points: Points, keep: Sequence[str]) -> bool:
    """Whether a run has to be trained again, since variants are wanted of a checkpoint whose weights were not kept."""
    if run.of_initial:
        return False
    kinds = {of for _, of, name in run.wanted(keep) if name not in points.names()}
    return lacks_kept(store, run.key, points, kinds)


def lacks_kept(store: Store, key: str, points: Points, kinds: Iterable[str]) -> bool:
    """Whether the weights of a kept checkpoint of one of these kinds are gone."""
    return any(not has_weights(store, key, points.get(points.kept(of))) for of in kinds)
