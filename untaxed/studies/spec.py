"""What a study is, as written in YAML: the pydantic models, their defaults and their one-line errors.

YAML file ──> read_yaml ──> --set ──> paths and variables (`places`) ──> parse_spec ──> StudySpec
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..errors import SpecError, nearest
from ..measuring.suite_spec import SuiteSpec
from ..strict_yaml import apply_sets, read_yaml
from ..validation import validated
from .arms import plan_arms
from .places import located
from .sources import WORLDS, DataSpec, ModelsSpec

Kept = Literal["last", "best_proxy", "all"]


class AlgorithmSpec(BaseModel):
    """The algorithm and its arguments; those not named here go to TRL's config of that algorithm, checked against it.

    Attributes:
        name: dpo, ipo, kto, rloo or grpo.
        max_steps: Optimizer steps.
        learning_rate: Of the optimizer.
        batch_size: Pairs (dpo, ipo, kto) or completions (rloo, grpo) an optimizer step, over all processes.
        beta: Strength of the KL term that the algorithm itself has.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "dpo"
    max_steps: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    batch_size: int | None = Field(default=None, ge=1)
    beta: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        from ..training import ALGORITHMS

        if name not in ALGORITHMS:
            raise ValueError(f"unknown algorithm {name!r}{nearest(name, ALGORITHMS)}")
        return name

    def arguments(self) -> dict[str, Any]:
        """The arguments that the spec gives."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


class PocketMeasure(BaseModel):
    """What a study of the embedded world may say about measuring; what is measured there is fixed.

    Attributes:
        every: Steps between two measurements; pocket's own when None.
        items: Only the first so many items of every ability and prompts of every split: a quick look.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: int | None = Field(default=None, ge=1)
    items: int | None = Field(default=None, ge=1)


class StudySpec(BaseModel):
    """A study: what is aligned, how, with which remedies, and what is measured.

    Attributes:
        name: Of the study, for reports.
        models: What alignment starts from, and checkpoints trained elsewhere, if any.
        algorithm: None only where `models.aligned` is given.
        data: Prompts and preferences; pocket brings its own.
        methods: One item an arm: a name, ``{name: settings}``, or a list of those. Sweeps are written ``{sweep: […]}``.
        measure: Rewards, abilities and drift; pocket brings its own.
        keep: Checkpoints that stay on disk, and that methods after training act on. ``all`` removes nothing.
        seeds: One training a seed.
        checkpoint_every: Steps between two saves that an interrupted run goes on from; None: it starts again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    models: ModelsSpec
    algorithm: AlgorithmSpec | None = None
    data: DataSpec = Field(default_factory=DataSpec)
    methods: list[Any] = Field(min_length=1)
    measure: SuiteSpec | PocketMeasure
    keep: list[Kept] = ["last", "best_proxy"]
    seeds: list[int] = Field(default=[0], min_length=1)
    checkpoint_every: int | None = Field(default=None, ge=1)

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds must differ and be at least 0, got {seeds}")
        if max(seeds) >= 2**32:
            raise ValueError(f"seeds must be below 2**32, got {max(seeds)}")
        return seeds

    @field_validator("keep")
    @classmethod
    def _something_to_act_on(cls, keep: list[Kept]) -> list[Kept]:
        if not keep:
            raise ValueError("is empty; name `last`, `best_proxy` or both: methods after training act on them")
        if not set(keep) - {"all"}:
            raise ValueError("name `last`, `best_proxy` or both beside `all`: methods after training act on them")
        return list(dict.fromkeys(keep))

    @model_validator(mode="after")
    def _one_way_to_get_aligned_models(self) -> StudySpec:
        if self.models.aligned and self.algorithm:
            raise ValueError("`algorithm` and `models.aligned` exclude each other: train, or judge given checkpoints")
        if not self.models.aligned and not self.algorithm:
            raise ValueError("key `algorithm` is required (or `models.aligned` names checkpoints trained elsewhere)")
        return self

    def resolved(self) -> dict[str, Any]:
        """The spec with every default filled in, as plain JSON values."""
        return self.model_dump(mode="json", exclude_none=True)


def load_spec(path: str | Path, sets: Iterable[str] = ()) -> StudySpec:
    """Reads a study spec.

    Args:
        path: A YAML file. Relative paths in it are relative to it.
        sets: Changes such as ``algorithm.max_steps=20``; the value is YAML, and a number steps into a list.

    Raises:
        SpecError: One line that names the key, what is wrong with it and the nearest known key.
    """
    path = Path(path)
    raw = apply_sets(read_yaml(path), sets)
    return parse_spec(located(raw, path.parent), where=f"{path}: ")


def parse_spec(raw: Mapping[str, Any], *, where: str = "") -> StudySpec:
    """Checks a spec given as plain values, and fills in its defaults; `where` begins every error."""
    filled = dict(raw)
    models = validated(ModelsSpec, filled["models"], where, "models") if "models" in filled else None
    pocket = models is not None and models.pocket
    if models is not None and pocket:
        filled = _pocket_defaults(models) | filled
    if models is not None and "measure" in filled:
        _check_items(filled["measure"], models, where)
        filled["measure"] = validated(PocketMeasure if pocket else SuiteSpec, filled["measure"], where, "measure")
    spec = validated(StudySpec, filled, where)
    plan_arms(spec.methods, where=where)  # for its errors: here the file can be named
    if pocket and spec.data != DataSpec():
        raise SpecError(
            f"{where}data: the embedded world brings its own data; leave `data` out or name another initial"
        )
    return spec


def _check_items(measure: Any, models: ModelsSpec, where: str) -> None:
    """Blames `models` where `measure` is plainly meant for the embedded world."""
    meant = isinstance(measure, Mapping) and "items" in measure and set(measure) <= set(PocketMeasure.model_fields)
    if meant and not models.pocket:
        raise SpecError(
            f"{where}models.initial: measure.items belongs to the embedded world (initial: {WORLDS[0]}), got"
            f" {models.initial!r}; write {WORLDS[0]}, or give measure its reward and abilities"
        )


def _pocket_defaults(models: ModelsSpec) -> dict[str, Any]:
    defaults: dict[str, Any] = {"measure": {}, "keep": ["last", "best_proxy", "all"]}
    return defaults if models.aligned else {**defaults, "algorithm": {"name": "dpo"}}
