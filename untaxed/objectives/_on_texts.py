"""What the methods share that add a loss on texts of their own: which texts, how many a step, how much they count."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..checks import check_number
from ..errors import DataError, SpecError, Unsupported, short
from ..method import Method
from ..sites import Context, Need, Site

BACKENDS = ("plain", "ddp", "fsdp2")


@dataclass(frozen=True, kw_only=True)
class OnTexts(Method):
    """A loss on texts of its own; abstract.

    Attributes:
        field: The field that holds the texts; no spec sets it, since a study's data do.
        asked: What a study's data call them.
    """

    acts: ClassVar[frozenset[Site]] = frozenset({"loss"})
    field: ClassVar[str]
    asked: ClassVar[Need]

    def __post_init__(self) -> None:
        object.__setattr__(self, self.field, checked_texts(self.name, self.field, self.given))

    @property
    def given(self) -> Any:
        """The texts."""
        return getattr(self, self.field)

    @property
    def needed(self) -> frozenset[Need]:
        return frozenset() if self.given else frozenset({self.asked})

    @classmethod
    def setting(cls, key: str, value: Any, where: str) -> Any:
        if key == cls.field:
            raise SpecError(f"{where} has no setting {key!r}: a study takes them from its data")
        return super().setting(key, value, where)

    def settings(self) -> dict[str, Any]:
        names = [each.name for each in dataclasses.fields(self) if each.name != self.field]
        return {name: getattr(self, name) for name in names}

    def check(self, context: Context) -> None:
        check_in_loss(self, context)

    def check_given(self) -> None:
        """Raises `Unsupported` where there are no texts, which nobody may find out at the first step."""
        if not self.given:
            raise Unsupported(
                f"{self.name} has nothing to read: give {type(self).__name__}({self.field}=[…]), a list of texts"
            )


def check_in_loss(method: Method, context: Context) -> None:
    """Refuses where no loss can be reached: nothing is trained, or the model cannot be run a second time."""
    if context.algorithm is None:
        raise Unsupported(f"{method.name} acts during training, and given checkpoints are not trained; leave it out")
    if context.backend not in BACKENDS:
        raise Unsupported(
            f"{method.name} cannot act under {context.backend}, where no second forward pass has been tried; use "
            "FSDP2, or a method that acts after training on the saved checkpoint"
        )


def checked_texts(method: str, field: str, texts: Any) -> tuple[str, ...]:
    """Texts as a tuple.

    Raises:
        DataError: They are no list of texts, or one is empty or none; counted from 1.
    """
    if isinstance(texts, str | Mapping) or not isinstance(texts, Sequence):
        raise DataError(f"{method}: {field} must be a list of texts, got {short(texts)}")
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            way = f"; give its text, such as row[{next(iter(text))!r}]" if isinstance(text, Mapping) and text else ""
            raise DataError(f"{method}: {field} {number} is no text but {type(text).__name__} {short(text)}{way}")
        if not text.strip():
            raise DataError(f"{method}: {field} {number} is empty; leave it out")
    return tuple(texts)


def check_strength(name: str, value: object) -> None:
    """Raises `ValueError` unless a setting is a finite number, at least 0."""
    check_number(name, value)
    if value < 0:  # type: ignore[operator]
        raise ValueError(f"{name} must be at least 0, got {value}")


def check_batch(value: object) -> None:
    """Raises `ValueError` unless a batch size is a whole number, at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"batch_size must be a whole number of texts, at least 1, got {value!r}")
