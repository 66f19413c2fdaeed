"""Rewards as written in a suite, and the functions that they stand for.

reward:
  proxy: {reward_model: models/reward, chat: true}
  gold: vader
  others: {short: {rules: [{max_words: 40}, {regex: "[.!?]$", weight: 2}]}, mine: "my_rewards:score"}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from ..checkpoints import fetch
from ..rows import RowsSource
from ..templates import check_template
from .reward_models import RewardModel
from .reward_sources import TextClassifier, Vader, imported, source_file
from .rules import Rule, Rules
from .suite import Reward
from .suite_items import located

Name = Annotated[str, Field(pattern=r"^[\w-]+$")]
NAMED = ("proxy", "gold")


class Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def without_defaults(*names: str) -> Any:
    """A serializer that leaves these fields out where they are empty: a study from before them had none."""

    def serialize(self: BaseModel, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key not in names or value}

    return model_serializer(mode="wrap")(serialize)


class ClassifierSpec(Spec):
    """A reward fitted on labelled texts: see `untaxed.measuring.reward_sources.TextClassifier`.

    Attributes:
        rows: Labelled rows.
        text: Their field with the text.
        label: Their field with the label.
        positive: The label that is rewarded.
    """

    rows: RowsSource
    text: str = "text"
    label: str = "label"
    positive: int | str = 1


class ClassifierReward(Spec):
    """``{text_classifier: …}``."""

    text_classifier: ClassifierSpec


class ModelReward(Spec):
    """A reward model: see `untaxed.measuring.reward_models.RewardModel`.

    Attributes:
        reward_model: Its folder or hub id.
        label: The rewarded one of several labels.
        chat: Whether its chat template makes the text.
        template: How ``{prompt}`` and ``{completion}`` make the text; by default joined by a space.
        batch_size: Texts a forward pass.
        max_tokens: The longest text that may be scored; by default what the model can read.
        dtype: Of the weights.
    """

    reward_model: str
    label: str | None = None
    chat: bool = False
    template: str | None = None
    batch_size: int = Field(default=16, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    @field_validator("template")
    @classmethod
    def _plain(cls, template: str | None) -> str | None:
        if template is not None and "{completion}" not in check_template(template):
            raise ValueError(f"{template!r} has no {{completion}}, where the completion goes")
        return template

    @model_validator(mode="after")
    def _one_text(self) -> ModelReward:
        if self.chat and self.template is not None:
            raise ValueError("either `chat` or `template` makes the text, not both")
        return self


class RulesReward(Spec):
    """``{rules: […]}``: the weighted share of rules that are kept."""

    rules: list[Rule] = Field(min_length=1)


def kind_of(keys: Mapping[str, str]) -> Callable[[Any], str | None]:
    """Tells by a key which model of a union a value is of, so that what is wrong in it is said of that model alone."""

    def kind(value: Any) -> str | None:
        if isinstance(value, str | BaseModel):
            return type(value).__name__
        found = (keys[key] for key in keys if isinstance(value, Mapping) and key in value)
        return next(found, None)

    return kind


SOURCES = {"text_classifier": "ClassifierReward", "reward_model": "ModelReward", "rules": "RulesReward"}
EXPECTED = f"expected `vader`, `module:function` or {' or '.join(f'`{name}: …`' for name in SOURCES)}"
Source = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[ClassifierReward, Tag("ClassifierReward")]
    | Annotated[ModelReward, Tag("ModelReward")]
    | Annotated[RulesReward, Tag("RulesReward")],
    Discriminator(kind_of(SOURCES), custom_error_type="source", custom_error_message=EXPECTED),
]


def check_source(value: Any) -> Any:
    if isinstance(value, str) and value != "vader" and not all(value.partition(":")):
        raise ValueError(f"{EXPECTED}, got {value!r}")
    return value


class RewardSpec(Spec):
    """The rewards, each ``module:function``, ``vader``, a text classifier, a reward model or rules.

    A module is looked for beside the spec, then in the working directory, then among the installed ones.

    Attributes:
        proxy: What alignment maximises.
        gold: What it should have maximised, where that is known.
        others: Rewards that are shown and that nothing is chosen by, by name.
    """

    proxy: Source
    gold: Source | None = None
    others: dict[Name, Source] = Field(default_factory=dict)

    _plain = without_defaults("others")
    _named = field_validator("proxy", "gold")(check_source)

    @field_validator("others")
    @classmethod
    def _others_named(cls, others: dict[str, Any]) -> dict[str, Any]:
        for name, value in others.items():
            if name in NAMED:
                raise ValueError(f"{name} has its own place, beside `others`")
            check_source(value)
        return others

    def entries(self) -> dict[str, Source]:
        """All rewards by name, in order."""
        named = {"proxy": self.proxy, "gold": self.gold, **self.others}
        return {name: entry for name, entry in named.items() if entry is not None}


def single_is_proxy(value: Any) -> Any:
    """A reward that stands alone is the proxy."""
    single = isinstance(value, str) or (isinstance(value, Mapping) and any(name in value for name in SOURCES))
    return {"proxy": value} if single else value


def build_reward(entry: Source, directory: Path) -> Reward:
    """The function that an entry stands for; relative paths start at `directory`."""
    if isinstance(entry, ClassifierReward):
        settings = entry.text_classifier
        rows = located(settings.rows, directory)
        return TextClassifier(rows, text=settings.text, label=settings.label, positive=settings.positive)
    if isinstance(entry, RulesReward):
        return Rules(entry.rules)
    if isinstance(entry, ModelReward):
        made = RewardModel(model_directory(entry.reward_model, directory), **entry.model_dump(exclude={"reward_model"}))
        made.check()
        return made
    return Vader() if entry == "vader" else imported(entry, directory)


def model_directory(name: str, directory: Path) -> Path:
    """The folder of a model given by path, from `directory`, or by hub id; a folder is preferred."""
    path = directory / Path(name).expanduser()
    return path.absolute() if path.is_dir() else fetch(name)


def source_path(entry: Source, directory: Path) -> Path | None:
    """The file of a reward's function, or the folder of its model; None where neither is looked at."""
    if isinstance(entry, ModelReward):
        return model_directory(entry.reward_model, directory)
    return source_file(entry, directory) if isinstance(entry, str) and entry != "vader" else None
