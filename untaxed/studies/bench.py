"""What one process needs to make the runs of a study, built once and shared by them."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from ..checkpoints import check_model_dir, fingerprint, load_model, load_tokenizer
from ..errors import SpecError
from ..measuring import Subject, Suite
from ..measuring.lm_eval_tasks import LmEvalSpec, task_files
from ..measuring.suite_spec import SuiteSpec, reward_files
from ..rows import RowsSource
from ..sites import Context
from ..together import check_overridden, check_together
from ..training import ALGORITHMS, Task, check_arguments, check_training, with_meter
from ..training.arguments import free_every
from ..training.reference import check_reference_arguments
from .arms import ArmPlan, RunPlan, check_arms, plan_arms, plan_runs
from .cache import content_key, default_cache, digest, file_digest
from .prepare import build_task
from .recipes import named_model
from .spec import PocketMeasure, StudySpec


@dataclass
class Bench:
    """The task with everything derived from it; nothing is trained and no model loaded until it is asked for.

    Attributes:
        spec: The study.
        task: Its models, data and suite.
        arms: Its arms, each checked against the algorithm.
        arguments: The algorithm's arguments, defaults filled in; empty where checkpoints are given.
        every: Steps between two measurements.
        aligned: The given checkpoints by step; empty where the study trains.
    """

    spec: StudySpec
    task: Task
    arms: tuple[ArmPlan, ...]
    arguments: dict[str, Any]
    every: int
    aligned: dict[int, Path] = field(default_factory=dict)

    @property
    def suite(self) -> Suite:
        return self.task.suite

    @property
    def steps(self) -> int:
        """Optimizer steps of a run; the last given checkpoint's where nothing is trained."""
        return int(self.arguments["max_steps"]) if self.arguments else max(self.aligned)

    @property
    def device(self) -> torch.device:
        """Where models are measured: where they are trained."""
        gpu = torch.cuda.is_available() and not self.arguments.get("use_cpu")
        return torch.device("cuda" if gpu else "cpu")

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.task.initial)

    @cached_property
    def initial(self) -> Subject:
        """The initial model under measurement; its samples are drawn once for all runs of this process."""
        return Subject(self.load(self.task.initial), self.tokenizer, self.suite)

    def load(self, path: Path) -> Any:
        """A model to be measured, on the device."""
        model: Any = load_model(path)
        return model.to(self.device)

    def subject(self, model: Any) -> Subject:
        """A model under measurement, its drift measured from the initial one."""
        return Subject(model, self.tokenizer, self.suite, initial=self.initial)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What all runs share; a run's key depends on it, on `inputs` where its methods read them."""
        paths = {"initial": self.task.initial, "pretrained": self.task.pretrained}
        models: dict[str, Any] = {name: fingerprint(path) for name, path in paths.items() if path is not None}
        if self.aligned:
            models["aligned"] = [fingerprint(path) for path in self.aligned.values()]
        name = self.spec.algorithm.name if self.spec.algorithm else None
        read = [self.spec.data.prompts, self.spec.data.preferences, self.spec.measure]
        data: dict[str, Any] = {
            "rows": content_key("rows", [[dict(row) for row in self.task.preferences], list(self.task.prompts)]),
            "files": sorted({file_digest(file) for file in local_files(read)}),
        }
        files = reward_files(self.spec.measure, Path.cwd()) if isinstance(self.spec.measure, SuiteSpec) else {}
        if files:
            data["rewards"] = {name: digest(file) for name, file in files.items()}
        algorithm = {"name": name, **self.arguments} if name else None
        inputs = {need: content_key(need, rows) for need, rows in self.task.rows.items() if rows}
        return {"models": models, "data": data, "algorithm": algorithm, "inputs": inputs}

    @cached_property
    def runs(self) -> dict[str, RunPlan]:
        """Every run that the arms need, by key."""
        return plan_runs(self.arms, self.spec.seeds, self.identity)

    def facts(self) -> dict[str, Any]:
        """What a study has to know about its task, as plain JSON values."""
        shapes = check_model_dir(self.task.initial).values()
        return {
            "identity": self.identity,
            "steps": self.steps,
            "every": self.every,
            "measured_steps": len(self.aligned) or -(-self.steps // self.every),
            "given": bool(self.aligned),
            "parameters": sum(math.prod(shape) for shape in shapes),
            "measures": [
                {
                    "group": one.group,
                    "name": one.name,
                    "statistic": one.statistic,
                    "chance": one.chance,
                    "unit": one.unit,
                }
                for one in self.suite.measures
            ],
            "select": list(self.suite.select),
            "report": list(self.suite.report),
        }


def local_files(part: Any) -> Iterator[Path]:
    """The local files that a part of a spec reads, so that one changed in place is noticed."""
    if isinstance(part, RowsSource):
        if (file := part.file()) is not None:
            yield file
    elif isinstance(part, LmEvalSpec):
        yield from task_files(part)
    elif isinstance(part, BaseModel):
        yield from local_files([getattr(part, name) for name in type(part).model_fields])
    elif isinstance(part, Mapping):
        yield from local_files(list(part.values()))
    elif isinstance(part, list | tuple):
        for one in part:
            yield from local_files(one)


def prepare(spec: StudySpec) -> Bench:
    """Makes or finds what the runs share, and checks all of it before anything is written.

    Raises:
        UsageError: Whatever is wrong with spec, models, data or methods, in one line.
    """
    arms = plan_arms(spec.methods)
    task = build_task(spec, default_cache())
    task = replace(task, suite=_suite(spec, task), initial=task.initial.absolute())
    arguments = _arguments(spec, task)
    bench = Bench(spec, task, arms, arguments, _every(spec), _aligned(spec, task))
    name = spec.algorithm.name if spec.algorithm else None
    context = Context(
        name,
        arguments.get("max_steps"),
        given=task.given,
        free_every=1 if name is None else free_every(name, arguments),
        shapes=check_model_dir(task.initial),
        rewards=[one.name for one in task.suite.group("reward")],
        temperature=task.suite.sampling.temperature,
    )
    check_arms(arms, context)
    if name is not None:
        for setting in (setting for arm in arms for setting in arm.settings):
            check_together(with_meter(setting.training, task, steps=arguments["max_steps"]))
            check_overridden(setting.training, arguments)
            check_reference_arguments(name, arguments, setting.training)
    return bench


def _arguments(spec: StudySpec, task: Task) -> dict[str, Any]:
    if spec.algorithm is None:
        return {}
    row = ALGORITHMS[spec.algorithm.name]
    given = {**row.defaults, **task.arguments.get(row.name, {}), **spec.algorithm.arguments()}
    checked = check_arguments(row.name, given)
    check_training(row.name, checked, task)
    return checked


def _every(spec: StudySpec) -> int:
    if spec.measure.every is not None:
        return spec.measure.every
    from .. import pocket

    return pocket.EVERY


def _suite(spec: StudySpec, task: Task) -> Suite:
    """The task's suite, or the embedded world's with fewer items and prompts where the spec asks for a quick look."""
    items = spec.measure.items if isinstance(spec.measure, PocketMeasure) else None
    if items is None:
        return task.suite
    from .. import pocket

    suite = pocket.WORLDS[str(spec.models.initial)].suite(items)
    return replace(suite, prompts={split: prompts[:items] for split, prompts in suite.prompts.items()})


def _aligned(spec: StudySpec, task: Task) -> dict[int, Path]:
    """The given checkpoints by step: the number at the end of every name where these rise, else 1, 2, …"""
    if not spec.models.aligned:
        return {}
    if len(spec.seeds) > 1:
        raise SpecError("seeds: given checkpoints belong to one training; leave `seeds` out")
    paths = [named_model(name) for name in spec.models.aligned]
    found = [re.search(r"(\d+)$", path.name) for path in paths]
    numbers = [int(match[1]) for match in found if match]
    rising = len(numbers) == len(paths) and all(a < b for a, b in itertools.pairwise(numbers))
    steps = numbers if rising else range(1, len(paths) + 1)
    return {step: path.absolute() for step, path in zip(steps, paths)}
