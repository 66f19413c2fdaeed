"""Abilities scored by lm-evaluation-harness: any of its tasks, on the model under measurement, item by item.

Its items are divided into validation and test by the hash of their content, as all others are. Known traps, and what is
done about them: it seeds the global generators, changes the tokenizer's padding and leaves the model in evaluation mode
(all put back); it cuts what is longer than the context (such items are left out and counted); it reads a model object
in one process only (a sharded one is refused).
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..errors import DataError, SpecError, Unsupported, UntaxedError, last_line, meant, nearest, require
from ..rows import fraction
from .lm_eval_resume import resuming
from .subject import Subject
from .suite import SPLITS, Measure, Scores, Split, counted

GENERATED = 256  # tokens that it generates where a task does not say
TASK_FILES = (".yaml", ".yml", ".py")
SEED_OF_LIMIT = 1  # another than that of the halves, which would always take the first of them


class LmEvalSpec(BaseModel):
    """``{lm_eval: TASK, …}``: a task of lm-evaluation-harness.

    Attributes:
        lm_eval: The task's name there. A group has several tasks; name each.
        name: The ability's name in results; None: the task's.
        metric: One of the task's metrics, ``acc`` or, with its filter, ``exact_match,strict-match``; None: the first.
        include: A folder with task files of your own.
        num_fewshot: Worked examples before every item; None: as the task says.
        chat: Whether prompts go through the model's chat template; None: as the suite says.
        limit: At most so many items a split.
        chance: What guessing gets; None: the mean of 1 over an item's number of choices for an accuracy (``acc…``) of a
            multiple-choice task, else 0.
        batch_size: Rows that it reads at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    lm_eval: str = Field(min_length=1)
    name: str = Field(default="", pattern=r"^[\w-]*$")
    metric: str | None = None
    include: str | None = None
    num_fewshot: int | None = Field(default=None, ge=0)
    chat: bool | None = None
    limit: int | None = Field(default=None, ge=1)
    chance: float | None = Field(default=None, ge=0, lt=1)
    batch_size: int = Field(default=8, ge=1)

    def model_post_init(self, _: Any) -> None:
        if not self.name:
            object.__setattr__(self, "name", re.sub(r"[^\w-]", "_", self.lm_eval))


def lm_eval_ability(spec: LmEvalSpec, directory: Path, *, chat: bool = False) -> Measure:
    """The measure of a task of lm-evaluation-harness; its documents are read at once.

    Args:
        spec: The task.
        directory: Where a relative `include` starts.
        chat: Whether the chat template is applied where the spec does not say.
    Raises:
        MissingExtra: lm-eval is not installed.
        SpecError: There is no such task or metric, or it is no mean of scores of which higher is better.
        DataError: Its documents cannot be read.
    """
    task, manager = _task(spec, directory)
    metric, _, rule = _metric(spec, task).partition(",")
    texts = [json.dumps(document, sort_keys=True, default=str) for document in task.eval_docs]
    wanted = _divided(texts, spec.limit)
    templated = chat if spec.chat is None else spec.chat
    for split, numbers in wanted.items():
        if not numbers:
            raise DataError(f"lm_eval {spec.lm_eval!r}: too few documents, none fell to {split}")

    def score(subject: Subject, split: Split) -> Scores:
        _check(subject, spec, templated)
        samples = _evaluated(subject, spec, manager, wanted[split], templated)
        rows = [row for row in samples if not rule or row["filter"] == rule]
        rows = sorted((row for row in rows if row["filter"] == rows[0]["filter"]), key=lambda row: int(row["doc_id"]))
        kept = [row for row in rows if _fits(subject, row["arguments"])]
        subject.left_out(kept, len(rows), f"{spec.name} {split}")
        return np.array([[float(row[metric])] for row in kept])

    chance = _chance(spec, task, metric, [task.eval_docs[at] for numbers in wanted.values() for at in numbers])
    content = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    return Measure(
        "abilities", spec.name, "mean", score, chance=chance, items=counted(wanted), content=content, sharded=False
    )


def task_files(spec: LmEvalSpec) -> list[Path]:
    """The task files and their code in the folder that a spec includes, so that one changed in place is noticed."""
    folder = None if spec.include is None else Path(spec.include).expanduser()
    if folder is None or not folder.is_dir():
        return []
    return sorted(file for file in folder.rglob("*") if file.suffix in TASK_FILES and file.is_file())


def _task(spec: LmEvalSpec, directory: Path) -> tuple[Any, Any]:
    tasks = require("lm_eval.tasks", extra="eval")
    include = None if spec.include is None else str((directory / Path(spec.include).expanduser()).resolve())
    with _quiet():
        manager = tasks.TaskManager(include_path=include)
        if spec.lm_eval not in manager.all_tasks:
            near = meant(spec.lm_eval, manager.all_tasks)
            raise SpecError(f"lm_eval: unknown task {spec.lm_eval!r}{near}; `lm-eval ls tasks` lists all")
        try:
            loaded = manager.load([spec.lm_eval])["tasks"]
        except Exception as error:  # its data set, from a hub or a file, may fail in any way
            raise DataError(f"lm_eval {spec.lm_eval!r}: its data cannot be read: {last_line(error)}") from None
    if list(loaded) != [spec.lm_eval]:
        raise SpecError(f"lm_eval: {spec.lm_eval!r} is a group; name its tasks one by one: {', '.join(sorted(loaded))}")
    return loaded[spec.lm_eval], manager


def _metric(spec: LmEvalSpec, task: Any) -> str:
    """The metric, checked: a mean over items, higher is better."""
    means, better = task.aggregation(), task.higher_is_better()
    name = spec.metric or next(iter(means))
    metric = name.partition(",")[0]
    if metric not in means:
        raise SpecError(f"lm_eval {spec.lm_eval!r}: unknown metric {metric!r}{nearest(metric, means)}")
    if getattr(means[metric], "__name__", "") != "mean" or not better.get(metric, True):
        raise SpecError(
            f"lm_eval {spec.lm_eval!r}: {metric!r} is no mean over items of which higher is better, as an ability must "
            f"be; metrics: {', '.join(means)}"
        )
    return name


def _chance(spec: LmEvalSpec, task: Any, metric: str, documents: Sequence[Any]) -> float:
    """What guessing gets; see `LmEvalSpec`."""
    if spec.chance is not None:
        return spec.chance
    if getattr(task, "OUTPUT_TYPE", None) != "multiple_choice" or not metric.startswith("acc"):
        return 0.0
    try:
        return float(np.mean([1 / len(task.doc_to_choice(document)) for document in documents]))
    except Exception as error:  # a task's own code
        raise SpecError(
            f"lm_eval {spec.lm_eval!r}: how many choices its items have cannot be read ({last_line(error)}); give "
            "`chance`, what guessing gets"
        ) from None


def _divided(texts: Sequence[str], limit: int | None) -> dict[Split, list[int]]:
    """The documents' numbers in halves by the hash of their content, at most `limit` of each, drawn by another hash."""
    halves: dict[Split, list[int]] = {split: [] for split in SPLITS}
    for number, text in enumerate(texts):
        halves[SPLITS[fraction(text) >= 0.5]].append(number)
    ranked = {
        split: sorted(numbers, key=lambda at: fraction(texts[at], SEED_OF_LIMIT)) for split, numbers in halves.items()
    }
    return {split: sorted(numbers[:limit]) for split, numbers in ranked.items()}


def _check(subject: Subject, spec: LmEvalSpec, chat: bool) -> None:
    if any(hasattr(parameter, "device_mesh") for parameter in subject.model.parameters()):
        raise Unsupported(
            f"lm_eval {spec.lm_eval!r}: a sharded model cannot be read in the loop; measure its saved checkpoints "
            "(models: {initial: …, aligned: […]})"
        )
    if chat and getattr(subject.tokenizer, "chat_template", None) is None:
        raise DataError(f"{spec.name}: `chat: true`, and the tokenizer has no chat template; leave `chat` out")


def _evaluated(
    subject: Subject, spec: LmEvalSpec, manager: Any, numbers: Sequence[int], chat: bool
) -> list[dict[str, Any]]:
    """What it logged of every document: its number, its requests, and its metrics under each filter."""
    evaluate = require("lm_eval", extra="eval").simple_evaluate
    models = require("lm_eval.models.huggingface", extra="eval")
    with _quiet(), _no_commit(evaluate), _own_padding(subject.tokenizer):
        try:
            reader = models.HFLM
            if subject.journal.of:
                reader = resuming(reader, subject.journal, spec.batch_size)
            model = reader(
                pretrained=subject.model,
                tokenizer=subject.tokenizer,
                batch_size=spec.batch_size,
                device=str(subject.device),
            )
            result = evaluate(
                model=model,
                tasks=[spec.lm_eval],
                num_fewshot=spec.num_fewshot,
                samples={spec.lm_eval: list(numbers)},
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=chat,
                task_manager=manager,
            )
        except (UntaxedError, MemoryError):
            raise
        except Exception as error:  # its own code and a task's may raise anything; the line names the task
            raise DataError(f"lm_eval {spec.lm_eval!r} failed: {type(error).__name__}: {last_line(error)}") from error
    samples: list[dict[str, Any]] = result["samples"][spec.lm_eval]
    return samples


def _fits(subject: Subject, requests: Sequence[Any] | Mapping[str, Any]) -> bool:
    """Whether all requests of a document fit into the context, so that none was cut."""
    limit = subject.context
    return limit is None or all(_length(subject.tokenizer, one) <= limit for one in requests)


def _length(tokenizer: Any, request: Sequence[Any]) -> int:
    text, after = request[0], request[1] if len(request) > 1 else ""
    if isinstance(after, str):
        return len(tokenizer(text + after, verbose=False)["input_ids"]) - 1  # the last token is never read
    return len(tokenizer(text, verbose=False)["input_ids"]) + int(after.get("max_gen_toks", GENERATED))


@contextlib.contextmanager
def _own_padding(tokenizer: Any) -> Iterator[None]:
    before = tokenizer.pad_token
    try:
        yield
    finally:
        tokenizer.pad_token = before


@contextlib.contextmanager
def _no_commit(evaluate: Any) -> Iterator[None]:
    """It asks git for a commit, which complains on the terminal where the working directory is no repository."""
    names = getattr(inspect.unwrap(evaluate), "__globals__", {})
    before = names.get("get_git_commit_hash")
    if before is not None:
        names["get_git_commit_hash"] = lambda: None
    try:
        yield
    finally:
        if before is not None:
            names["get_git_commit_hash"] = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without its progress bars and log lines: what matters of them is said in errors and notes."""
    logger = logging.getLogger("lm_eval")
    before = logger.disabled, logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.disabled, logger.level = before
