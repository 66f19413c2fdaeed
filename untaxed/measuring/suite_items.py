"""Rows become test items: prompts, choices and answers, divided into validation and test."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, nearest
from ..rows import Row, RowsSource, read_rows, split_by_hash, subset
from ..templates import filled
from .abilities import Choice, Item
from .ability_spec import AbilitySpec, ShotsSpec
from .answers import extracted
from .encoding import join
from .generated import Question
from .instructions import check_instruction
from .suite import SPLITS, Split

HALVES: Mapping[str, float] = {"validation": 0.5, "test": 0.5}


def items_of(spec: AbilitySpec, directory: Path) -> dict[Split, list[Any]]:
    """The ability's items by split; relative paths start at `directory`."""
    make = MAKERS[spec.kind]
    shots = [] if spec.shots is None else _shots(spec, spec.shots, directory)
    shown = {prompt for prompt, _ in shots}
    before = "".join(join(prompt, answer) + spec.shots.between for prompt, answer in shots) if spec.shots else ""

    def check(row: Row) -> None:
        alone = prompt_of(spec, row)
        row["item"] = make(spec, row, before + alone)
        row["part"] = alone if spec.split_by is None else field_of(row, spec.split_by)
        row["shown"] = alone in shown  # a worked example of the same file is no item

    parts = rows_by_split(spec.rows, directory, check, "part", spec.limit, without="shown")
    return {split: [row["item"] for row in rows] for split, rows in parts.items()}


def _shots(spec: AbilitySpec, shots: ShotsSpec, directory: Path) -> list[tuple[str, str]]:
    """The worked examples: prompt and answer of each, always the same ones."""

    def check(row: Row) -> None:
        row["shot"] = prompt_of(spec, row), filled(shots.answer, row)

    rows = read_rows(located(shots.rows, directory), check)
    if len(rows) < shots.count:
        raise DataError(f"{shots.rows.label}: {shots.count} worked examples are wanted, and there are {len(rows)} rows")
    return [row["shot"] for row in subset(rows, shots.count)]


def prompt_of(spec: AbilitySpec, row: Row) -> str:
    """The first template whose fields the row has, filled in."""
    templates = [spec.template] if isinstance(spec.template, str) else spec.template
    if spec.letters:
        texts = _choice_texts(spec, row)
        row = {**row, "lettered": "\n".join(f"{_letter(at)}. {text}" for at, text in enumerate(texts))}
    for template in templates[:-1]:
        try:
            return _clean(spec, filled(template, row))
        except ValueError:
            continue
    return _clean(spec, filled(templates[-1], row))


def _clean(spec: AbilitySpec, text: str) -> str:
    return text if spec.remove is None else re.sub(spec.remove, "", text)


def _letter(at: int) -> str:
    return chr(ord("A") + at)


def _choice_texts(spec: AbilitySpec, row: Row) -> tuple[str, ...]:
    raw = spec.options
    if raw is None:
        raw = [field_of(row, name) for name in spec.choices] if spec.choices else field_of(row, "choices")
    if not isinstance(raw, Sequence) or isinstance(raw, str) or len(raw) < 2:
        raise ValueError(f"choices: expected a list of at least two, got {raw!r}")
    return tuple(_clean(spec, str(one)).strip() for one in raw)


def rows_by_split(
    source: RowsSource,
    directory: Path,
    check: Callable[[Row], None],
    field: str,
    limit: int | None,
    *,
    without: str | None = None,
) -> dict[Split, list[Row]]:
    """Reads rows and divides them in halves by the hash of a field.

    Args:
        source: Which rows; a relative path starts at `directory`.
        directory: Where the spec stands.
        check: Raises `ValueError` for a row that cannot be used.
        field: The field that is hashed; rows with equal fields stay together.
        limit: At most so many rows a split.
        without: Rows in which this field is true are left out.
    """
    source = located(source, directory)
    rows = [row for row in read_rows(source, check) if without is None or not row.pop(without)]
    parts = split_by_hash(rows, field, HALVES)
    for split, members in parts.items():
        if not members:
            raise DataError(f"{source.label}: too few rows, none fell to {split}")
    return {split: subset(parts[split], limit) for split in SPLITS}


def located(source: RowsSource, directory: Path) -> RowsSource:
    """The source with a relative path made to start at `directory`."""
    file = source.file()
    if file is None or file.is_absolute():
        return source
    return source.model_copy(update={"path": str(directory / file)})


def field_of(row: Row, name: str) -> Any:
    """A row's value, which must be there."""
    if row.get(name) is None:
        raise ValueError(f"no value in column {name!r}{nearest(name, row)}")
    return row[name]


def _item(spec: AbilitySpec, row: Row, prompt: str) -> Item:
    return Item(prompt, str(field_of(row, "answer")))


def _last_word(spec: AbilitySpec, row: Row, prompt: str) -> Item:
    before, space, word = prompt.rstrip().rpartition(" ")
    if not space or not before.strip():
        raise ValueError(f"expected at least two words, got {prompt!r}")
    return Item(before, word)


def _choice(spec: AbilitySpec, row: Row, prompt: str) -> Choice:
    texts = _choice_texts(spec, row)
    position = _position(field_of(row, "answer"), texts, row.get("labels", ()))
    shown = tuple(_letter(at) for at in range(len(texts))) if spec.letters else texts
    return Choice(prompt, shown, position)


def _position(answer: Any, choices: Sequence[str], labels: Sequence[Any]) -> int:
    named = [str(label) for label in labels]
    if str(answer) in named:
        return named.index(str(answer))
    if isinstance(answer, bool) and len(choices) == 2:
        return int(answer)
    if str(answer).isdigit() and int(answer) < len(choices):
        return int(answer)
    if str(answer).strip() in choices:
        return choices.index(str(answer).strip())
    raise ValueError(f"answer: expected a position below {len(choices)}, a label or a choice's text, got {answer!r}")


def _question(spec: AbilitySpec, row: Row, prompt: str) -> Question:
    if spec.metric in ("instructions", "instructions_share"):
        return Question(prompt, _instructions(row))
    return Question(prompt, tuple(_right(spec, one) for one in _rights(row)))


def _rights(row: Row) -> Sequence[Any]:
    """The right answers: the column ``answers`` (texts, or mappings with ``text``), else ``answer``."""
    if row.get("answers") is None:
        return [field_of(row, "answer")]
    raw = row["answers"]
    if not isinstance(raw, Sequence) or isinstance(raw, str) or not raw:
        raise ValueError(f"answers: expected a list with at least one, got {raw!r}")
    return [one["text"] if isinstance(one, Mapping) and "text" in one else one for one in raw]


def _right(spec: AbilitySpec, answer: Any) -> str:
    pattern = None if spec.answer_pattern is None else re.compile(spec.answer_pattern)
    found = extracted(str(answer), pattern)
    if not found:
        reason = "is empty" if pattern is None else f"has nothing that answer_pattern {spec.answer_pattern!r} finds"
        raise ValueError(f"the right answer {str(answer)[-60:]!r} {reason}")
    return found


def _instructions(row: Row) -> tuple[dict[str, Any], ...]:
    names, settings = field_of(row, "instruction_id_list"), field_of(row, "kwargs")
    if not isinstance(names, Sequence) or not isinstance(settings, Sequence) or not 0 < len(names) == len(settings):
        raise ValueError("expected lists `instruction_id_list` and `kwargs` of one length, at least 1")
    return tuple(check_instruction(name, one or {}) for name, one in zip(names, settings, strict=True))


MAKERS: Mapping[str, Callable[[AbilitySpec, Row, str], Item | Choice | Question]] = {
    "multiple_choice": _choice,
    "exact_match": _item,
    "last_word": _last_word,
    "generated": _question,
}
