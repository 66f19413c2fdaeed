"""What a study starts from: its models and its data, as written in the spec."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from ..rows import RowsSource
from ..templates import check_template

WORLDS = ("pocket", "pocket_safety")  # the names of the embedded worlds


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Gguf(_Spec):
    """A GGUF file, turned once into a plain safetensors directory.

    Attributes:
        package: An installed Python package that carries the file.
        path: Or the file itself.
        file: Which file of the package, where it carries several.
    """

    package: str | None = None
    path: Path | None = None
    file: str | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Gguf:
        if (self.package is None) == (self.path is None):
            raise ValueError("needs either `package` or `path`")
        return self


class Sft(_Spec):
    """A short supervised fine-tuning of `pretrained` on texts, which makes `initial`.

    Attributes:
        rows: The texts, field ``text``.
        template: How a row becomes a text, with the row's fields in braces.
        max_steps: Optimizer steps.
        batch_size: Texts a step.
        learning_rate: Of AdamW, after a linear warm-up over a tenth of the steps, then falling linearly to a tenth.
        max_tokens: A text is cut after so many tokens.
        seed: Of the texts' order.
    """

    rows: RowsSource
    template: str = "{text}"
    max_steps: int = Field(default=100, ge=1)
    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=2e-5, gt=0)
    max_tokens: int = Field(default=128, ge=2)
    seed: int = 0

    _plain_template = field_validator("template")(check_template)


class Recipe(_Spec):
    """A model that is made by a cached preparation step: exactly one of the fields."""

    gguf: Gguf | None = None
    sft: Sft | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Recipe:
        if (self.gguf is None) == (self.sft is None):
            raise ValueError("needs either `gguf` or `sft`")
        return self


def _kind(value: Any) -> Literal["name", "recipe"] | None:
    if isinstance(value, str):
        return "name"
    return "recipe" if isinstance(value, Mapping | Recipe) else None


ModelSource = Annotated[
    Annotated[str, Tag("name")] | Annotated[Recipe, Tag("recipe")],
    Discriminator(
        _kind,
        custom_error_type="model_source",
        custom_error_message="should be a folder, a hub id, pocket, pocket_safety, or a recipe such as {sft: …}",
    ),
]


class ModelsSpec(_Spec):
    """The models of a study.

    Attributes:
        initial: What alignment starts from: a directory, a hub id, ``pocket``, ``pocket_safety``, or a recipe.
        pretrained: The common ancestor, where a method or the recipe of `initial` needs it.
        aligned: Checkpoints trained elsewhere; then the study trains nothing.
    """

    initial: ModelSource
    pretrained: ModelSource | None = None
    aligned: tuple[str, ...] = ()

    @field_validator("aligned", mode="before")
    @classmethod
    def _a_list(cls, aligned: Any) -> Any:
        if isinstance(aligned, str):
            raise ValueError(f"should be a list of checkpoints, of one too: [{aligned}]")
        return aligned

    @field_validator("aligned")
    @classmethod
    def _each_once(cls, aligned: tuple[str, ...]) -> tuple[str, ...]:
        paths = [Path(name).expanduser().resolve() for name in aligned]
        for name, path in zip(aligned, paths):
            if paths.count(path) > 1:
                raise ValueError(f"{name} stands {paths.count(path)} times; name every checkpoint once")
        return aligned

    @model_validator(mode="after")
    def _pocket_has_its_own(self) -> ModelsSpec:
        if self.pocket and self.pretrained is not None:
            raise ValueError("the embedded world brings its own `pretrained`; leave it out or name another `initial`")
        return self

    @model_validator(mode="after")
    def _recipes_fit(self) -> ModelsSpec:
        if isinstance(self.initial, Recipe) and self.initial.sft and self.pretrained is None:
            raise ValueError("`initial: {sft: …}` tunes `pretrained`, which is not given")
        if isinstance(self.pretrained, Recipe) and self.pretrained.sft:
            raise ValueError("`pretrained` comes before fine-tuning: a path, a hub id or `gguf`, not `sft`")
        return self

    @property
    def pocket(self) -> bool:
        """True for an embedded world."""
        return self.initial in WORLDS


class Prompts(RowsSource):
    """Rows with a field ``prompt``, divided by hash into train, validation and test.

    Attributes:
        opening_words: Keep only so many words of each prompt: the opening of a text that the model goes on with.
            Shorter texts are left out.
        template: How the (cut) prompt is put, with ``{prompt}`` for it.
    """

    opening_words: int | None = Field(default=None, ge=1)
    template: str = "{prompt}"

    @field_validator("template")
    @classmethod
    def _has_the_prompt(cls, template: str) -> str:
        if "{prompt}" not in template:
            raise ValueError(f"{template!r} has no {{prompt}}, where the prompt goes")
        return template


class Sampled(_Spec):
    """Preference pairs made of `initial`'s own samples: the best against the worst by the proxy reward.

    Attributes:
        prompts: How many of the train prompts are used; all when None.
        per_prompt: Samples a prompt.
        max_new_tokens: Tokens a sample.
        temperature: Of sampling.
        min_gap: Pairs whose rewards are not further apart are dropped; ties always are.
        seed: Of sampling.
    """

    prompts: int | None = Field(default=None, ge=1)
    per_prompt: int = Field(default=4, ge=2)
    max_new_tokens: int = Field(default=24, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    min_gap: float = Field(default=0.0, ge=0)
    seed: int = 0


class Preferences(RowsSource):
    """Rows with ``prompt``, ``chosen`` and ``rejected``, or `sampled` pairs."""

    sampled: Sampled | None = None

    def origins(self) -> list[str]:
        """The fields that say where the pairs come from and are given."""
        return [*super().origins(), *(["sampled"] if self.sampled else [])]

    @model_validator(mode="after")
    def _one_origin(self) -> Preferences:
        if self.sampled and len(self.origins()) > 1:
            raise ValueError("either `sampled` or a file or data set, not both")
        return self


class DataSpec(_Spec):
    """The data of a study.

    Attributes:
        prompts: What on-policy algorithms and measuring sample from.
        preferences: What the other algorithms learn from.
        general_prompts: Rows with ``prompt``, for methods that keep a model's answers to them as they are.
        reference_sets: By ability, rows with ``prompt`` and ``completion``, or ``text``, or ``prompt``, ``chosen`` and
            ``rejected``, for methods that keep their loss from rising.
        replay: Rows with ``text``, or ``prompt`` and ``completion``, for methods that go on reading them.
    """

    prompts: Prompts | None = None
    preferences: Preferences | None = None
    general_prompts: RowsSource | None = None
    reference_sets: dict[str, RowsSource] | None = None
    replay: RowsSource | None = None
