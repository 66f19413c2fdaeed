"""Reading rows: the one way in which texts, prompts, preferences and test items enter the library.

    RowsSource (path or hub, columns, where, limit) ──> read_rows ──> list of dicts ──> split_by_hash

A row is a dict. Files are read as they are named: `.jsonl`, `.json`, `.csv`, `.parquet`, `.txt`, the text forms also
with `.gz`. A local path never asks a hub. Every error names the file and the row.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import re
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .checkpoints import no_bars
from .errors import DataError, nearest, require

Row = dict[str, Any]
SHARES: Mapping[str, float] = {"train": 0.6, "validation": 0.2, "test": 0.2}
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")


class RowsSource(BaseModel):
    """Where rows come from, and which of them are taken.

    Attributes:
        path: A file. It may name environment variables, as in ``${UNTAXED_DATA}/piqa.jsonl.gz``; where such a variable
            is not set and `hub` is given, the hub is asked instead.
        hub: A data set of the Hugging Face hub (or a local folder that `datasets` can load).
        config: The hub data set's configuration, such as ``wikitext-2-raw-v1``.
        split: The hub data set's split.
        columns: Our names to theirs. A dot steps into a mapping (``choices.text``); of a list, the first that is there;
            where the list holds a null, the column may also be missing.
        where: Only rows whose field has this value; a column that may be missing, and is, excludes no row.
        min_chars: Only rows whose field has at least so many characters.
        max_chars: Only rows whose field has at most so many characters.
        head: Only the first rows of the file or data set; a hub data set is then streamed and not fetched whole.
        limit: At most so many rows. They are drawn by a hash of their content and stay in the file's order, since many
            files are sorted by label or length.
        seed: Of that draw.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = None
    hub: str | None = None
    config: str | None = None
    split: str = "train"
    columns: dict[str, str | list[str | None]] = Field(default_factory=dict)
    where: dict[str, str | int | float | bool] = Field(default_factory=dict)
    min_chars: dict[str, int] = Field(default_factory=dict)
    max_chars: dict[str, int] = Field(default_factory=dict)
    head: int | None = Field(default=None, ge=1)
    limit: int | None = Field(default=None, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _has_an_origin(self) -> RowsSource:
        if not self.origins():
            raise ValueError("needs `path` (a file) or `hub` (a data set's id)")
        return self

    def origins(self) -> list[str]:
        """The fields that say where the rows come from and are given."""
        return [name for name in ("path", "hub") if getattr(self, name)]

    def file(self) -> Path | None:
        """The file to read, or None when the hub is to be asked."""
        if self.path is None:
            return None
        unset = [name for name in _variables(self.path) if name not in os.environ]
        if unset and self.hub:
            return None
        if unset:
            raise DataError(f"{self.path}: the environment variable {unset[0]} is not set; set it to a folder")
        return Path(os.path.expandvars(self.path)).expanduser()

    @property
    def label(self) -> str:
        """The source in words, for messages."""
        file = self.file()
        return str(file) if file else f"{self.hub} ({self.split})"


def read_rows(source: RowsSource, check: Callable[[Row], None] | None = None) -> list[Row]:
    """Reads the rows that a source describes.

    Args:
        source: Which rows.
        check: Called with every row that is taken; a `ValueError` it raises becomes a `DataError` naming the row.

    Returns:
        The rows, in the source's order, with renamed columns beside the others.

    Raises:
        DataError: A file is missing, damaged or of an unknown kind, a column is missing, or no row is left.
        MissingExtra: The hub or a parquet file is asked for and `datasets` is not installed.
    """
    file = source.file()
    raw = _read_file(file) if file else _read_hub(source)
    rows = list(_chosen(source, raw, check))
    if not rows:
        raise DataError(f"{source.label}: no row to use; it is empty, or `where`, `min_chars`, `max_chars` fit none")
    return subset(rows, source.limit, seed=source.seed)


def subset(rows: Sequence[Row], limit: int | None, *, seed: int = 0) -> list[Row]:
    """Draws `limit` rows by a hash of their content and keeps their order; all of them when `limit` is None."""
    if limit is None or limit >= len(rows):
        return list(rows)
    ranks = [fraction(json.dumps(row, sort_keys=True, default=str), seed) for row in rows]
    kept = sorted(sorted(range(len(rows)), key=ranks.__getitem__)[:limit])
    return [rows[index] for index in kept]


def fraction(text: str, seed: int = 0) -> float:
    """Maps a text to a number in [0, 1) that is the same on every machine and looks random."""
    digest = hashlib.sha256(f"{seed}:{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_by_hash(
    rows: Iterable[Row], field: str, shares: Mapping[str, float] = SHARES, *, seed: int = 0
) -> dict[str, list[Row]]:
    """Divides rows by a hash of one field, so that a text falls into the same part in every file and order.

    Args:
        rows: The rows; the order within each part is theirs.
        field: The field that is hashed; rows with equal fields stay together.
        shares: Part name to its share; the shares add up to 1.
        seed: Of the hash.

    Example:
        >>> parts = split_by_hash([{"text": str(n)} for n in range(1000)], "text")
        >>> {name: len(part) for name, part in parts.items()}
        {'train': 615, 'validation': 186, 'test': 199}
    """
    parts: dict[str, list[Row]] = {name: [] for name in shares}
    for row in rows:
        parts[_part(fraction(str(row[field]), seed), shares)].append(row)
    return parts


def _part(position: float, shares: Mapping[str, float]) -> str:
    for name, share in shares.items():
        if position < share:
            return name
        position -= share
    return name  # rounding: the last part takes what is left


# --- choosing and renaming ---------------------------------------------------------------------------------------


def _chosen(source: RowsSource, raw: Iterable[Row], check: Callable[[Row], None] | None) -> Iterator[Row]:
    for number, row in enumerate(islice(raw, source.head), start=1):
        try:
            row = _renamed(row, source.columns)
            if _wanted(row, source):
                _check_texts("", row)
                if check is not None:
                    check(row)
                yield row
        except ValueError as error:
            raise DataError(f"{source.label}, row {number}: {error}") from None


def check_text(column: str, text: str) -> None:
    """Raises `ValueError` for a text with half of a surrogate pair, which JSON can write and no tokenizer can read."""
    if not text.isascii() and (half := _SURROGATE.search(text)):
        raise ValueError(
            f"{column} holds {half[0]!r} at character {half.start() + 1}, half of a character that was cut in two;"
            " write the text anew in whole characters"
        )


def _check_texts(column: str, value: Any) -> None:
    if isinstance(value, str):
        check_text(column, value)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            _check_texts(f"{column}.{name}" if column else str(name), inner)
    elif isinstance(value, list):
        for inner in value:
            _check_texts(column, inner)


def _renamed(row: Row, columns: Mapping[str, str | list[str | None]]) -> Row:
    found = {ours: _column(row, theirs) for ours, theirs in columns.items()}
    return {**row, **{ours: value for ours, value in found.items() if value is not _ABSENT}}


def _wanted(row: Row, source: RowsSource) -> bool:
    optional = {ours for ours, theirs in source.columns.items() if not isinstance(theirs, str) and None in theirs}
    asked = {field: value for field, value in source.where.items() if field in row or field not in optional}
    equal = (str(_column(row, field)) == str(value) for field, value in asked.items())
    long = (len(str(_column(row, field))) >= least for field, least in source.min_chars.items())
    short = (len(str(_column(row, field))) <= most for field, most in source.max_chars.items())
    return all(equal) and all(long) and all(short)


def _column(row: Row, names: str | list[str | None]) -> Any:
    """Looks a column up; of several names, the first that the row has."""
    wanted = [name for name in ([names] if isinstance(names, str) else names) if name is not None]
    for name in wanted:
        value: Any = row
        for step in [name] if name in row else name.split("."):
            value = value.get(step, _ABSENT) if isinstance(value, Mapping) else _ABSENT
        if value is not _ABSENT:
            return value
    if not isinstance(names, str) and None in names:
        return _ABSENT
    raise ValueError(f"no column {' or '.join(map(repr, wanted))}{nearest(wanted[0], row)}")


_ABSENT = object()


# --- files ---------------------------------------------------------------------------------------------------------


def _read_file(file: Path) -> Iterator[Row]:
    kind = file.name.removesuffix(".gz").rpartition(".")[2].lower()
    if kind not in _READERS:
        raise DataError(f"{file}: unknown kind of file{nearest(kind, _READERS)}")
    if file.is_dir():
        raise DataError(f"{file} is a folder; name a file in it")
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    return _READERS[kind](file)


def _open(file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file, "rb")) if file.suffix == ".gz" else file.open("rb")


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their line end; a damaged file is named with the line where it breaks.

    A line ends at a newline alone: not at a bare carriage return, and not at U+2028.
    """
    number = 0
    try:
        with _open(file) as stream:
            for number, line in enumerate(stream, start=1):
                yield number, _text(line.removeprefix(BOM_UTF8) if number == 1 else line, file, number)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}, after row {number}: cannot be read ({error})") from None


def _text(line: bytes, file: Path, number: int) -> str:
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        at = f"byte {line[error.start]:#04x} at place {error.start + 1}"
        raise DataError(f"{file}, line {number}: not text in UTF-8 ({at}); save the file as UTF-8") from None


def _jsonl(file: Path) -> Iterator[Row]:
    for number, line in _lines(file):
        if line.strip():
            yield _mapping(_parsed(line, file, number), file, number)


def _json(file: Path) -> Iterator[Row]:
    content = _parsed("\n".join(line for _, line in _lines(file)), file, 1)
    if not isinstance(content, list):
        raise DataError(f"{file}: expected a list of rows, got {type(content).__name__}")
    return (_mapping(row, file, number) for number, row in enumerate(content, start=1))


def _csv(file: Path) -> Iterator[Row]:
    reader = csv.DictReader((line + "\n" for _, line in _lines(file)), strict=True)
    try:
        for number, row in enumerate(reader, start=1):
            if None in row or None in row.values():
                raise DataError(f"{file}, row {number}: expected {len(reader.fieldnames or ())} cells; see its header")
            yield dict(row)
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: {error}") from None


def _txt(file: Path) -> Iterator[Row]:
    """One row a paragraph, field ``text``: lines up to an empty one."""
    paragraph: list[str] = []
    for _, line in _lines(file):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield {"text": "\n".join(paragraph)}
            paragraph = []
    if paragraph:
        yield {"text": "\n".join(paragraph)}


def _parquet(file: Path) -> Iterator[Row]:
    parquet = require("pyarrow.parquet", extra="train")
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches():
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as parquet ({error})") from None


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "txt": _txt,
    "parquet": _parquet,
}


def _parsed(text: str, file: Path, number: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}, row {number}: not JSON ({error.msg} at column {error.colno})") from None


def _mapping(value: Any, file: Path, number: int) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{file}, row {number}: expected a mapping of fields, got {type(value).__name__}")
    return value


# --- hub -----------------------------------------------------------------------------------------------------------


def _read_hub(source: RowsSource) -> Iterator[Row]:
    datasets = require("datasets", extra="train")
    try:
        with no_bars():
            found = datasets.load_dataset(source.hub, source.config, split=source.split, streaming=bool(source.head))
        yield from found
    except Exception as error:  # the hub's client raises many kinds: connection, HTTP, missing files, unknown splits
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{source.hub} ({source.split}) cannot be read from the hub: {reason}. Without a hub, give a local file: "
            f"{_remedy(source)}"
        ) from None


def _remedy(source: RowsSource) -> str:
    variables = _variables(source.path or "")
    return f"set {variables[0]} so that {source.path} exists" if variables else "`path: FILE` in place of `hub`"


def _variables(path: str) -> list[str]:
    return [braced or bare for braced, bare in _VARIABLE.findall(path)]
