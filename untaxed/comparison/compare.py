"""`measure`: models against the one that alignment started from, one call, everything kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import measuring
from ..checkpoints import load_model
from ..errors import DataError, SpecError, StoreError, Undefined
from ..measuring import Subject
from ..measuring.subject import TOO_LONG
from ..measuring.suite import SPLITS, Measure, Split
from ..studies.cache import default_cache, told
from ..studies.record import host, versions
from ..studies.store import VERSION, disk_errors, locked, write_json
from . import power
from .examples import examples
from .models import Model, check_chat, opened, other_tokens, same_tokenizer, taken, tell_apart
from .numbers import Scored, left_out, numbers, on_validation
from .scores import Found, Kept, Splits, folder
from .suite_file import Loaded, load_suite
from .verdict import verdict

Say = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """What was measured.

    Attributes:
        summary: The numbers, as ``measure.json`` holds them.
        directory: Where they lie; None: nothing but the scores was written, in the cache.
    """

    summary: Mapping[str, Any]
    directory: Path | None


def measure(
    models: Sequence[str | Path],
    initial: str | Path,
    suite: str | Path | Loaded = "pocket",
    out: str | Path | None = None,
    *,
    say: Say = lambda _: None,
) -> Comparison:
    """Measures models after alignment against the one before.

    Args:
        models: Directories or hub ids; ``pocket`` and ``pocket_safety`` are the embedded ones.
        initial: What alignment started from.
        suite: A suite file, or what `load_suite` returned.
        out: A directory for ``measure.json`` and the scores; None: scores are kept in the cache alone.
        say: Takes a few words on what is being done.
    Raises:
        UsageError: A model, the suite or its rows cannot be used; nothing was measured.
        RunFailed: A model's scores are not finite.
    """
    if not models:
        raise SpecError("name at least one model to measure")
    loaded = suite if isinstance(suite, Loaded) else load_suite(suite)
    say("checking models")
    directory = default_cache() / "measured" if out is None else Path(out).absolute()
    with _held(directory, alone=out is not None):
        start, others = opened(initial, "initial", directory), [opened(path, None, directory) for path in models]
        tell_apart(others, start)
        check_chat(loaded, (start, *others))
        summary = _measured(loaded, start, others, directory, say)
        if out is not None:
            write_json(directory / "measure.json", summary)
        for model in (start, *others):
            model.journal.remove()
    return Comparison(summary, None if out is None else directory)


def _measured(loaded: Loaded, start: Model, others: Sequence[Model], directory: Path, say: Say) -> dict[str, Any]:
    """The summary; scores are kept in the directory as they come."""
    for line in loaded.forecasts(len(others)):
        say(line)
    splits = counting(len(others))
    first = _scored(start, start, loaded, directory, say)
    if found := power.in_a_line(loaded.suite, power.least(loaded.suite, first, splits)):
        say(found)
    entries, chosen = [], {}
    for model in others:
        same = same_tokenizer(model.tokenizer, start.tokenizer)
        scored = paired(_scored(model, start, loaded, directory, say), first, same_tokens=same)
        scored = replace(scored, other_tokens=other_tokens(model, start))
        told = {"name": model.name, "path": str(model.path), "content": model.digest}
        shown = _items(model, start, loaded, directory, first, scored, splits, say)
        entries.append({**told, **numbers(loaded.suite, first, scored, splits), "items": shown, "notes": scored.notes})
        chosen[model.name] = on_validation(loaded.suite, first, scored)
        model.subject = None  # its memory is the next one's
    out_of_it = left_out(loaded.suite, first, splits)
    return {**_summary(loaded, start, first, entries, out_of_it), **verdict(entries, chosen)}


def counting(models: int) -> tuple[Split, ...]:
    """The splits whose items count: of one model nothing is chosen, so all do."""
    return SPLITS if models == 1 else ("test",)


def _check_place(directory: Path) -> None:
    """Raises `StoreError` where the scores could not be kept, before anything is computed."""
    with disk_errors(directory):
        if directory.is_file():
            raise StoreError(f"{directory} is a file; name a directory")
        if (directory / "config.json").exists():
            raise StoreError(f"{directory} holds a model; name another directory")
        if (directory / "study.json").exists():
            raise StoreError(f"{directory} holds a study, whose report would be written over; name another directory")
        folder(directory).mkdir(parents=True, exist_ok=True)
    if not os.access(folder(directory), os.W_OK):
        raise StoreError(f"{folder(directory)}: cannot be written: see its permissions, or name another")


@contextlib.contextmanager
def _held(directory: Path, *, alone: bool) -> Iterator[None]:
    """Sees that scores can be kept; a directory of one's own is nobody else's meanwhile, so that nothing is done twice.

    What a kill left half-written there is removed. The cache is everybody's.
    """
    _check_place(directory)
    if not alone:
        yield
        return
    with locked(directory / ".lock", what=f"the measurement in {directory}"):
        for left in (*directory.glob(".tmp-*"), *folder(directory).glob(".tmp-*")):
            if left.is_file():  # ours are files; what else lies in this directory is somebody's
                left.unlink(missing_ok=True)
        yield


def _scored(model: Model, start: Model, loaded: Loaded, directory: Path, say: Say) -> Scored:
    kept = Kept(directory, model=model.digest, initial=start.digest, contents=loaded.contents)
    found: dict[str, Found] = {}
    measures, why = taken(model, start, loaded.suite)
    for one in measures:

        def compute(one: Measure = one) -> Found:
            say(f"{model.name}: {one.name}")
            subject = _subject(model, start, loaded)
            readings = {split: measuring.measure(subject, split, [one.key]) for split in SPLITS}
            notes: dict[str, list[str]] = {}
            for split, reading in readings.items():
                for note in reading.notes.get(one.key, ()):
                    say(f"{model.name}: {one.name}, {split}: {note}")
                    notes.setdefault(split, []).append(note)
            return Found({split: reading.scores[one.key] for split, reading in readings.items()}, notes)

        try:
            with told(say):
                found[one.key] = kept.scores(one, compute)
        except Undefined as reason:  # the others have a number all the same
            why[one.key] = str(reason)
            say(f"{model.name}: {one.name}: {reason}")
        except DataError as error:
            raise DataError(f"{model.name}: {one.name}: {error}") from error
    notes = {key: one.notes for key, one in found.items() if one.notes}
    return Scored({key: one.scores for key, one in found.items()}, why, notes)


def paired(scored: Scored, first: Scored, *, same_tokens: bool) -> Scored:
    """The scores, without those of measures of which other items fit into this model's context than into initial's.

    With the same tokens the shorter context keeps some of what the longer one keeps, so that as many are the same ones.
    Where tokens differ, as many may be others: no item of either may have been left out.

    Args:
        scored: The model's.
        first: The initial model's.
        same_tokens: Whether prompts become the same tokens in both.
    """

    def apart(key: str) -> bool:
        ours, theirs = scored.scores[key], first.scores[key]
        if any(len(theirs[split]) != len(ours[split]) for split in ours):
            return True
        return not same_tokens and any(map(_left_out, (scored.notes.get(key, {}), first.notes.get(key, {}))))

    why = "other items fit into its context than into initial's, so that they cannot be paired"
    other = {key: why for key in scored.scores if key in first.scores and apart(key)}
    left = {key: value for key, value in scored.scores.items() if key not in other}
    return replace(scored, scores=left, why={**scored.why, **other})


def _left_out(notes: Mapping[str, Sequence[str]]) -> bool:
    return any(note.startswith(TOO_LONG) for said in notes.values() for note in said)


def _subject(model: Model, start: Model, loaded: Loaded) -> Subject:
    if model.subject is None:
        weights: Any = load_model(model.path)
        weights.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        initial = None if model is start else _subject(start, start, loaded)
        # one tokenizer object for all that share it: encoded items are remembered with it
        tokenizer = start.tokenizer if same_tokenizer(model.tokenizer, start.tokenizer) else model.tokenizer
        model.subject = Subject(weights, tokenizer, loaded.suite, initial=initial, journal=model.journal)
    return model.subject


def _items(
    model: Model,
    start: Model,
    loaded: Loaded,
    directory: Path,
    first: Scored,
    scored: Scored,
    splits: Sequence[Split],
    say: Say,
) -> dict[str, Any]:
    """By ability, items that were lost and won."""
    kept = Kept(directory, model=model.digest, initial=start.digest, contents=loaded.contents)

    def subjects() -> tuple[Subject, Subject]:
        return _subject(start, start, loaded), _subject(model, start, loaded)

    found = {}
    for one in (one for one in loaded.suite.group("abilities") if one.key in scored.scores):
        ours, theirs = scored.scores[one.key], first.scores[one.key]

        def compute(one: Measure = one, ours: Splits = ours, theirs: Splits = theirs) -> dict[str, Any]:
            say(f"{model.name}: items of {one.name}")
            return examples(one, theirs, ours, splits, subjects)

        if shown := kept.items(one, splits, compute):
            found[one.name] = shown
    return found


def _summary(
    loaded: Loaded, start: Model, first: Scored, entries: Sequence[Mapping[str, Any]], out: Mapping[str, str]
) -> dict[str, Any]:
    suite = loaded.suite
    return {
        "version": VERSION,
        "initial": {"name": start.name, "path": str(start.path), "content": start.digest, "notes": first.notes},
        "models": list(entries),
        "items": "all" if len(entries) == 1 else "test",
        "measures": [
            {"group": one.group, "name": one.name, "statistic": one.statistic, "chance": one.chance, "unit": one.unit}
            for one in suite.measures
        ],
        "select": list(suite.select),
        "report": list(suite.report),
        "left_out": [{"ability": ability, "why": why} for ability, why in out.items()],
        "suite": loaded.described,
        "versions": versions(),
        "host": host(),
    }
