"""The parts of a merge recipe: models, slices of them, the one module, the tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from ._settings import Setting

Settings = dict[str, Annotated[Setting, BeforeValidator(Setting.read)]]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, protected_namespaces=())

    parameters: Settings = {}

    @field_validator("parameters", mode="before")
    @classmethod
    def _none_is_empty(cls, value: Any) -> Any:
        return {} if value is None else value


class Input(Part):
    """A model that is merged whole: a directory, a hub id, either with ``+`` and a LoRA adapter."""

    model: str = Field(min_length=1)


class Source(Input):
    """Some layers of a model: from the first up to, not including, the second."""

    layer_range: tuple[int, int]

    @field_validator("layer_range")
    @classmethod
    def _some(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= value[0] < value[1]:
            raise ValueError(f"should be [first, stop] with 0 <= first < stop, got {list(value)}")
        return value


class Cut(Part):
    """Layers of the output, merged from equally many layers of each source."""

    sources: tuple[Source, ...] = Field(min_length=1)
    base_model: str | None = None
    residual_weight: None = None

    @field_validator("residual_weight", mode="before")
    @classmethod
    def _no_residual(cls, value: Any) -> None:
        if value is not None:
            raise ValueError("is not supported; leave it out")

    @model_validator(mode="after")
    def _equally_many(self) -> Cut:
        lengths = {stop - first for first, stop in (source.layer_range for source in self.sources)}
        if len(lengths) > 1:
            ranges = ", ".join(f"{source.model} {list(source.layer_range)}" for source in self.sources)
            raise ValueError(f"sources should give equally many layers, got {ranges}")
        return self


class Whole(Part):
    """Either whole models or slices of them."""

    models: tuple[Input, ...] | None = Field(default=None, min_length=1)
    slices: tuple[Cut, ...] | None = Field(default=None, min_length=1)


class Module(Whole):
    """The one module of a model that is all of it."""

    @model_validator(mode="after")
    def _either(self) -> Module:
        exactly_one(self, ("models", "slices"))
        return self


def _existing(value: str) -> str:
    if value == "union":
        raise ValueError(
            "union is not supported: vocabularies are not changed; write `base`, or the model whose tokenizer it gets"
        )
    return value


TokenizerSource = Annotated[str, Field(min_length=1), AfterValidator(_existing)]


class TokenizerSpec(BaseModel):
    """Whose tokenizer the output gets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: TokenizerSource = Field(default="union", validate_default=True)
    tokens: None = None
    pad_to_multiple_of: None = None

    @field_validator("tokens", "pad_to_multiple_of", mode="before")
    @classmethod
    def _not_made(cls, value: Any) -> None:
        if value is not None:
            raise ValueError("is not supported: vocabularies are not changed; leave it out")


def exactly_one(part: BaseModel, keys: Iterable[str]) -> None:
    given = [key for key in keys if getattr(part, key) is not None]
    if len(given) != 1:
        got = " and ".join(f"`{key}`" for key in given) or "none of them"
        raise ValueError(f"expected exactly one of {', '.join(f'`{key}`' for key in keys)}, got {got}")
