"""What the files of a study must hold: JSON that is whole may still be an editor's, or another program's."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class Shape(BaseModel):
    """Keys and types that reading relies on; more keys may be there."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Split(Shape):
    reward: dict[str, float | None]
    abilities: dict[str, float | None]
    drift: dict[str, float | None]


class _Variant(Shape):
    method: str
    of: Literal["last", "best_proxy", "initial"]


class _Point(Shape):
    name: str
    step: int
    variant: _Variant | None
    phase: Literal["before", "after"] | None
    validation: _Split
    test: _Split | None
    weights: str | None
    why: dict[str, str] = {}


class _InitialPoint(_Point):
    test: _Split


class InitialFile(Shape):
    """``initial/result.json``"""

    points: list[_InitialPoint] = Field(min_length=1)


class _Lacking(Shape):
    name: str
    variant: dict[str, Any]
    why: str


class _Member(Shape):
    seed: int
    number: int


class RunFile(Shape):
    """``runs/<key>/result.json``"""

    key: str
    status: Literal["done", "failed"]
    why: str | None
    seed: int
    member: _Member | None = None
    of: Literal["initial"] | None = None
    methods: list[Any]
    points: list[_Point]
    seconds: float | None
    train_seconds: float | None
    peak_bytes: int | None
    notes: list[str] = []
    lacking: list[_Lacking] = []

    @model_validator(mode="after")
    def _trained_and_each_once(self) -> RunFile:
        names = Counter(point.name for point in self.points)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"points: {twice[0]} stands there {names[twice[0]]} times")
        trained = self.status == "done" and self.of is None
        if trained and all(point.variant is not None for point in self.points):
            raise ValueError("points: there is none of the training of a run that is done")
        return self


class TextsFile(Shape):
    """``texts.json`` under the key ``texts``"""

    texts: dict[str, list[dict[str, Any]]]


class ProgressFile(TextsFile):
    """``progress.json``"""

    points: list[_Point]
    seconds: float
    outcome: dict[str, Any] | None
    notes: list[str] = []


class _Setting(Shape):
    setting: str
    values: dict[str, Any]
    variant: dict[str, Any] | None
    runs: dict[Annotated[str, Field(pattern=r"^\d+$")], str]
    decoding: int = 1
    members: dict[Annotated[str, Field(pattern=r"^\d+$")], list[str]] = {}


class _Arm(Shape):
    arm: str
    methods: list[Any]
    plain: bool
    early_stopping: bool
    yardstick: str = ""
    settings: list[_Setting]


class _Measure(Shape):
    group: Literal["reward", "abilities", "drift"]
    name: str
    statistic: str
    chance: float
    unit: str


class _Spec(Shape):
    name: str
    seeds: list[int]


class _Identity(Shape):
    models: dict[str, Any]
    data: dict[str, Any]


class Aside(Shape):
    """One run or variant that is on disk and that the spec does not name any more."""

    arm: str
    setting: str
    seed: int
    key: str
    variant: dict[str, Any] | None


class StudyFile(Shape):
    """``study.json``"""

    spec: _Spec
    identity: _Identity
    measures: list[_Measure]
    select: list[str]
    report: list[str]
    arms: list[_Arm]
    versions: dict[str, Any]
    host: Any
    git: Any
    started: str
    aside: list[Aside] = []


class _Entry(Shape):
    arm: str
    plain: bool
    early_stopping: bool
    tax: dict[str, dict[str, Any]]
    reward: dict[str, Any]
    abilities: dict[str, Any]
    drift: dict[str, Any]
    points: list[dict[str, Any]]


class SummaryFile(Shape):
    """``summary.json``"""

    verdict: str
    caveats: list[str]
    seeds: int
    arms: list[_Entry]
    initial: dict[str, Any]
    left_out: list[dict[str, str]]


def misfit(shape: type[Shape], value: Any) -> str | None:
    """The first thing in which a value is not of a shape, in words; None where it fits."""
    try:
        shape.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, first["loc"]))
        if first["type"] == "value_error":
            return str(first["ctx"]["error"])
        if first["type"] == "missing":
            return f"{path} is missing"
        if not path:
            return f"expected keys and values, got {_short(value)}"
        return f"{path}: {first['msg'].replace('Input should', 'should')}, got {_short(first['input'])}"
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
