"""Rows: every kind of file, choosing, renaming, dividing, and what bad input gets."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from untaxed.errors import DataError, MissingExtra
from untaxed.rows import RowsSource, fraction, read_rows, split_by_hash, subset

ROWS = [{"text": f"review {n}", "label": n % 2} for n in range(6)]


def write(path: Path, text: str) -> RowsSource:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_bytes(text.encode())
    return RowsSource(path=str(path))


def jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# --- kinds of files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_jsonl(tmp_path: Path, name: str) -> None:
    assert read_rows(write(tmp_path / name, jsonl(ROWS))) == ROWS


def test_jsonl_line_ends_and_empty_lines(tmp_path: Path) -> None:
    assert read_rows(write(tmp_path / "a.jsonl", '{"a": 1}\r\n\n{"a": 2}')) == [{"a": 1}, {"a": 2}]


def test_jsonl_keeps_a_text_with_unicode_line_separators_whole(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\x0cfour"
    source = write(tmp_path / "a.jsonl", json.dumps({"text": text}, ensure_ascii=False) + "\n")
    assert read_rows(source) == [{"text": text}]


def test_json(tmp_path: Path) -> None:
    assert read_rows(write(tmp_path / "a.json", json.dumps(ROWS, indent=1))) == ROWS


def test_csv_with_a_line_break_in_a_cell(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", 'text,label\n"good, and\nlong",1\nbad,0\n')
    assert read_rows(source) == [{"text": "good, and\nlong", "label": "1"}, {"text": "bad", "label": "0"}]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_txt_gives_paragraphs(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / name, "\none\ntwo\n \n\nthree\n")
    assert read_rows(source) == [{"text": "one\ntwo"}, {"text": "three"}]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert read_rows(RowsSource(path=str(tmp_path / "a.parquet"))) == ROWS


def test_a_local_path_never_asks_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("untaxed.rows._read_hub", lambda source: pytest.fail("asked the hub"))
    path = write(tmp_path / "a.jsonl", jsonl(ROWS)).path
    assert read_rows(RowsSource(path=path, hub="owner/name")) == ROWS


# --- choosing and renaming -----------------------------------------------------------------------------------------


def test_columns_rename_step_into_mappings_and_take_the_first_that_is_there(tmp_path: Path) -> None:
    rows = [{"goal": "a", "choices": {"text": ["x", "y"]}}, {"goal": "b", "choices": ["z"], "key": 1}]
    source = write(tmp_path / "a.jsonl", jsonl(rows)).model_copy(
        update={"columns": {"prompt": "goal", "choices": ["choices.text", "choices"], "key": ["key", None]}}
    )
    first, second = read_rows(source)
    assert first == {"goal": "a", "prompt": "a", "choices": ["x", "y"]}
    assert second == {"goal": "b", "prompt": "b", "choices": ["z"], "key": 1}


def test_where_chars_head_and_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", jsonl([*ROWS, {"text": "no", "label": 1}])).path
    labels = [row["text"] for row in read_rows(RowsSource(path=path, where={"label": 1}))]
    assert labels == ["review 1", "review 3", "review 5", "no"]
    assert len(read_rows(RowsSource(path=path, min_chars={"text": 3}))) == 6
    assert read_rows(RowsSource(path=path, max_chars={"text": 3})) == [{"text": "no", "label": 1}]
    assert read_rows(RowsSource(path=path, head=2)) == ROWS[:2]
    assert len(read_rows(RowsSource(path=path, limit=3))) == 3


def test_a_limit_draws_by_content_and_keeps_the_order() -> None:
    rows = [{"n": n} for n in range(100)]
    drawn = subset(rows, 10)
    assert drawn == sorted(drawn, key=lambda row: row["n"])
    assert drawn != rows[:10]
    assert subset(rows[::-1], 10) == drawn[::-1]
    assert subset(rows, 10, seed=1) != drawn
    assert subset(rows, 200) == rows


def test_a_path_may_name_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", jsonl(ROWS))
    source = RowsSource(path="${SOME_FOLDER}/a.jsonl", hub="owner/name")
    monkeypatch.delenv("SOME_FOLDER", raising=False)
    assert source.file() is None  # the hub is asked
    with pytest.raises(DataError, match="SOME_FOLDER is not set"):
        read_rows(RowsSource(path="${SOME_FOLDER}/a.jsonl"))
    monkeypatch.setenv("SOME_FOLDER", str(tmp_path))
    assert read_rows(source) == ROWS


# --- dividing ------------------------------------------------------------------------------------------------------


def test_split_by_hash_is_stable_complete_and_near_its_shares() -> None:
    rows = [{"text": f"text {n}"} for n in range(4000)]
    parts = split_by_hash(rows, "text", {"train": 0.5, "validation": 0.3, "test": 0.2})
    assert sum(map(len, parts.values())) == 4000
    for name, share in {"train": 0.5, "validation": 0.3, "test": 0.2}.items():
        assert abs(len(parts[name]) / 4000 - share) < 0.03
    again = split_by_hash(rows[::-1], "text", {"train": 0.5, "validation": 0.3, "test": 0.2})
    assert {name: part[::-1] for name, part in again.items()} == parts
    assert split_by_hash(rows, "text", {"train": 0.5, "validation": 0.3, "test": 0.2}, seed=1) != parts


def test_fraction_is_the_same_everywhere() -> None:
    # SHA-256 of "0:a" begins with these 8 bytes; 2^64 makes a fraction of them.
    assert fraction("a") == int.from_bytes(bytes.fromhex("9df3c5fab8ef8fe7"), "big") / 2**64


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"a\.jsonl, row 2: not JSON"),
        ("a.jsonl", '{"a": 1}\n[1]\n', r"a\.jsonl, row 2: expected a mapping of fields, got list"),
        ("a.jsonl", "\n\n", "no row to use"),
        ("a.json", '{"a": 1}', "expected a list of rows, got dict"),
        ("a.csv", "a,b\n1,2\n1\n", r"a\.csv, row 2: expected 2 cells"),
        ("a.csv", "a,b\n1,2,3\n", r"a\.csv, row 1: expected 2 cells"),
        ("a.txt", "", "no row to use"),
        ("a.jsnl", "", "unknown kind of file; did you mean 'jsonl'?"),
        ("a.parquet", "no table", "cannot be read as parquet"),
    ],
)
def test_a_wrong_file_is_named_with_its_row(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_rows(write(tmp_path / name, content))


def test_damaged_files(tmp_path: Path) -> None:
    whole = gzip.compress(jsonl(ROWS * 1000).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "fake.jsonl.gz").write_bytes(b"not gzip")
    for name in ("cut.jsonl.gz", "fake.jsonl.gz"):
        with pytest.raises(DataError, match=rf"{name}, after row \d+: cannot be read"):
            read_rows(RowsSource(path=str(tmp_path / name)))


def test_text_that_is_not_utf_8_is_named_with_its_line(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"row {n}"}).encode() for n in range(40)] + ['{"text": "é"}'.encode("latin-1")]
    (tmp_path / "latin.jsonl").write_bytes(b"\n".join(rows))
    with pytest.raises(DataError, match=r"latin\.jsonl, line 41: not text in UTF-8 \(byte 0xe9 at place 11\)"):
        read_rows(RowsSource(path=str(tmp_path / "latin.jsonl")))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz"])
def test_a_mark_of_utf_8_at_a_files_begin_is_none_of_its_text(tmp_path: Path, name: str) -> None:
    text = {"json": '[{"text": "é"}]', "csv": "text\né\n"}.get(name.rpartition(".")[2], '{"text": "é"}')
    data = text.encode("utf-8-sig")
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert read_rows(RowsSource(path=str(tmp_path / name))) == [{"text": "é"}]


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_rows(RowsSource(path=str(tmp_path / "a.jsonl")))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match="is a folder; name a file in it"):
        read_rows(RowsSource(path=str(tmp_path / "folder.jsonl")))


def test_a_missing_column_is_named_with_the_nearest(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", jsonl(ROWS)).model_copy(update={"columns": {"prompt": "txt"}})
    with pytest.raises(DataError, match=r"a\.jsonl, row 1: no column 'txt'; did you mean 'text'\?"):
        read_rows(source)


def test_a_check_that_refuses_names_the_row(tmp_path: Path) -> None:
    def check(row: dict) -> None:
        if row["text"] == "review 4":
            raise ValueError("not this one")

    with pytest.raises(DataError, match=r"a\.jsonl, row 5: not this one"):
        read_rows(write(tmp_path / "a.jsonl", jsonl(ROWS)), check)


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.delenv("SOME_FOLDER", raising=False)
    with pytest.raises(DataError, match=r"owner/nowhere \(test\) cannot be read from the hub.*`path: FILE`"):
        read_rows(RowsSource(hub="owner/nowhere", split="test"))
    with pytest.raises(DataError, match=r"set SOME_FOLDER so that"):
        read_rows(RowsSource(path="${SOME_FOLDER}/a.jsonl", hub="owner/nowhere"))


def test_a_hub_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match="untaxed\\[train\\]"):
        read_rows(RowsSource(hub="owner/name"))


@pytest.mark.parametrize("keys", [{}, {"limit": 3}, {"path": "a.jsonl", "limit": 0}, {"path": "a", "splt": "x"}])
def test_sources_that_make_no_sense(keys: dict) -> None:
    with pytest.raises(ValidationError):
        RowsSource(**keys)


@pytest.mark.parametrize("head", [None, 3])
def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: int | None) -> None:
    """A folder in the place of a data set's id takes the same way through `datasets`, whole or streamed."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", jsonl(ROWS))
    source = RowsSource(hub=str(tmp_path / "set"), head=head, columns={"prompt": "text"})
    expected = [{**row, "prompt": row["text"]} for row in ROWS[:head]]
    assert read_rows(source) == expected
    with pytest.raises(DataError, match="row 1: no column 'txt'"):
        read_rows(source.model_copy(update={"columns": {"prompt": "txt"}}))
    with pytest.raises(DataError, match=r"cannot be read from the hub: .*nowhere"):
        read_rows(source.model_copy(update={"split": "nowhere"}))
