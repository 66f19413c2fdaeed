"""Runs a merge: blocks are read, merged and written by several threads, and the result appears whole or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import ShardedWriter, Source, carry_files, open_source
from ..freed import give_back, keep_freed
from ._card import card
from ._plan import Plan, make_plan
from ._recipe import Recipe
from ._resolve import Resolved, Taken
from ._rule import BLOCK

Progress = Callable[[int], None]  # is told the bytes that were written
SHARD_BYTES = 5 * 10**9


def merge(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    workers: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    allow_nonfinite: bool = False,
) -> Source:
    """Merges models as a recipe says, and writes the result as a model directory.

    Args:
        recipe: mergekit's YAML as a file or as keys and values (docs/recipes.md).
        out: The directory to appear; there must be none.
        workers: Threads; as many as there are processors, at most 8, where not given. They do not change the result.
        shard_bytes: Most bytes of tensors a file.
        allow_nonfinite: Whether NaN and infinity in a parent are merged instead of refused.
    Returns:
        The new model, opened.
    Raises:
        SpecError: The recipe is wrong or does not fit its models.
        CheckpointError: A model cannot be used, or the models do not fit each other.
        StoreError: `out` is taken or cannot be written.
    """
    plan = make_plan(recipe, workers=workers, allow_nonfinite=allow_nonfinite)
    run(plan, out, shard_bytes=shard_bytes)
    return open_source(out, allow_nonfinite=True)


def run(plan: Plan, out: str | Path, *, shard_bytes: int = SHARD_BYTES, progress: Progress | None = None) -> None:
    """Carries a plan out.

    Args:
        plan: From `make_plan`.
        out: The directory to appear.
        shard_bytes: Most bytes of tensors a file.
        progress: Called after every block, from any thread.
    Raises:
        CheckpointError, StoreError: As `merge`; nothing is left at `out` then.
    """
    read = {place for parent in plan.parents.values() for place in parent.directories}
    with ShardedWriter(
        out, plan.kinds, shard_bytes=shard_bytes, parents=sorted(read), allow_nonfinite=plan.allow_nonfinite
    ) as writer:
        _work(plan, writer, progress or (lambda nbytes: None))
        carry_files(plan.main, writer.directory, kinds=plan.kinds, config=plan.config, tokenizer=plan.tokenizer)
        if plan.recipe.chat_template is not None:
            (writer.directory / "chat_template.jinja").write_text(plan.recipe.chat_template, encoding="utf-8")
        (writer.directory / "README.md").write_text(card(plan, Path(out).name), encoding="utf-8")


class _Stopped(Exception):
    """Another thread failed, or the user stopped the merge."""


def _work(plan: Plan, writer: ShardedWriter, progress: Progress) -> None:
    """Every tensor by one thread, the largest first, so that none is left alone with one at the end."""
    stop, threads = threading.Event(), torch.get_num_threads()
    keep_freed()
    # a thread of torch's for each of ours: theirs would wait for each other at every one of many short operations
    pool = ThreadPoolExecutor(plan.workers, "untaxed-merge", initializer=lambda: torch.set_num_threads(1))
    with ExitStack() as stack:
        stack.callback(give_back)
        stack.callback(torch.set_num_threads, threads)
        stack.callback(pool.shutdown, cancel_futures=True)
        stack.callback(stop.set)
        largest_first = sorted(plan.tensors, key=lambda one: -plan.kinds[one.name].numel)
        futures = [pool.submit(_Tensor(plan, one, stop).write, writer, progress) for one in largest_first]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()


class _Tensor:
    """One tensor of the output on its way from the parents to the file."""

    def __init__(self, plan: Plan, one: Resolved, stop: threading.Event) -> None:
        self._one, self._stop = one, stop
        self._parents = plan.parents
        self._kind = plan.kinds[one.name]
        self._starts = range(0, self._kind.numel, BLOCK)

    @torch.no_grad()
    def write(self, writer: ShardedWriter, progress: Progress) -> None:
        """Surveys the tensor as often as its rule asks, then merges it."""
        name, rule = self._one.name, self._one.rule
        if rule is None or not self._kind.dtype.is_floating_point:
            for start in self._starts:
                self._put(writer, progress, start, self._copied(start))
            return
        survey = rule.survey(self._kind.numel, name=name)
        while survey is not None:
            for start in self._starts:
                survey.take(*self._blocks(start), start)
            if not survey.again():
                break
        for start in self._starts:
            models, base = self._blocks(start)
            self._put(writer, progress, start, rule.combine(models, base, survey=survey, name=name, offset=start))

    def _put(self, writer: ShardedWriter, progress: Progress, start: int, values: Tensor) -> None:
        writer.write(self._one.name, start, values)
        progress(values.numel() * self._kind.dtype.itemsize)

    def _blocks(self, start: int) -> tuple[list[Tensor], Tensor | None]:
        if self._stop.is_set():
            raise _Stopped
        models = [self._block(taken, start) for taken in self._one.models]
        base = None if self._one.base is None else self._block(self._one.base, start)
        if len({part.dtype for part in (*models, *([] if base is None else [base]))}) > 1:  # some are float64
            models = [part.double() for part in models]
            base = None if base is None else base.double()
        return models, base

    def _block(self, taken: Taken, start: int) -> Tensor:
        return self._parents[taken.parent].block(taken.name, start, min(start + BLOCK, self._kind.numel))

    def _copied(self, start: int) -> Tensor:
        """Of one parent, in its own dtype: through float32 where that changes, so that NaN and infinity are found."""
        if self._stop.is_set():
            raise _Stopped
        rule = self._one.rule
        owner = 0 if rule is None else rule.owner()
        taken = self._one.base if owner is None and self._one.base is not None else self._one.models[owner or 0]
        if self._kind.dtype.is_floating_point:
            return self._block(taken, start)
        return self._parents[taken.parent].stored(taken.name, start, min(start + BLOCK, self._kind.numel))
