"""Plain readers of CSV, JSON and Parquet files, which say where a file is wrong."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.packages import require_text_extra

MAGIC = (b"PAR1", b"PK\x03\x04", b"%PDF")  # what is text in large parts and yet no text file
CONTROL = bytes(set(range(32)) - set(b"\t\n\r\f\x1b")) + b"\x7f"
MOST_UNREADABLE = 0.1  # of the characters; Latin-1 of French has .04, of Russian in CP1251 .8
SAMPLE = 1 << 16


@contextmanager
def opened(path: Path) -> Iterator[io.TextIOWrapper]:
    """The characters of a text file, gzip or not; bytes that are not UTF-8 become lone surrogates, one each."""
    with path.open("rb") as raw:
        packed = raw.peek(2)[:2] == b"\x1f\x8b"
        stream = gzip.GzipFile(fileobj=raw) if packed else raw
        with io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield file


@contextmanager
def long_fields() -> Iterator[None]:
    """Within it fields of CSV may be of any length."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def whole_text(path: Path) -> str:
    """All characters of a text file; bytes that are not UTF-8 become lone surrogates, one each.

    Raises:
        InputError: the file cannot be read, or most of it is no text.
    """
    try:
        with opened(path) as file:
            text = file.read()
        with path.open("rb") as raw:
            start = raw.read(8)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: a damaged gzip file ({error})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if start.startswith(MAGIC) or _unreadable(text[:SAMPLE]) > MOST_UNREADABLE:
        raise InputError(f"{path}: no text in UTF-8, but binary data or another encoding; save it as UTF-8")
    return text


def plain_csv(path: Path, delimiter: str) -> dict[str, list[str]]:
    """The columns of a CSV file; a field that a row lacks is empty, and lines without a character are no rows.

    Raises:
        InputError: a row has more fields than the header, or quotes do not match.
    """
    reader = csv.reader(io.StringIO(whole_text(path), newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    header: list[str] = []
    with long_fields():
        try:
            for row in reader:
                if row and not header:
                    header = row
                elif len(row) > len(header):
                    raise InputError(
                        f"{path}, line {reader.line_num}: {len(row)} fields where the header has {len(header)}; "
                        f"put a field that holds {'a tab' if delimiter != ',' else 'a comma'} in quotes"
                    )
                elif row:
                    rows.append(row + [""] * (len(header) - len(row)))
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: {error}; are the quotes in pairs?") from error
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path}: two columns have the name {twice!r}; rename one")
    return {name: [row[k] for row in rows] for k, name in enumerate(header)}


def plain_json(path: Path) -> dict[str, list[Any]]:
    """The columns of a list of objects or of one object per line; a key that a row lacks is None.

    Raises:
        InputError: it is neither.
    """
    return columns_of(objects(whole_text(path), str(path)))


def columns_of(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows as columns; a key that a row lacks is None.

    Example:
        >>> columns_of([{"text": "a"}, {"text": "b", "label": 1}])
        {'text': ['a', 'b'], 'label': [None, 1]}
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def objects(text: str, where: str) -> list[dict[str, Any]]:
    """The rows of a JSON list of objects or of JSON lines.

    Raises:
        InputError: there is something else, with its line.
    """
    if text.lstrip().startswith("["):
        values = [(f"row {i}", value) for i, value in enumerate(_parsed(text, where, None), 1)]
    else:
        lines = ((i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip())
        values = [(f"line {i}", _parsed(line, where, i)) for i, line in lines]
    for place, value in values:
        if not isinstance(value, dict):
            raise InputError(f"{where}, {place}: a {type(value).__name__}; expected an object with a key per column")
    return [value for _, value in values]


def _parsed(text: str, where: str, line: int | None) -> Any:
    """Line is of the file, where the text is one line of it."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at character {error.colno}"
        raise InputError(f"{where}, line {line or error.lineno}: not JSON ({reason}); mend or drop it") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, too many brackets
        raise InputError(f"{where}, line {line or 1}: not JSON that can be read ({error})") from error


def plain_parquet(path: Path, wanted: Sequence[str]) -> dict[str, list[Any]]:
    """The wanted columns of a Parquet file, and the others empty.

    Raises:
        InputError: it is none, or damaged.
    """
    require_text_extra("pyarrow")
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            table = file.read(columns=[name for name in wanted if name in names])
            return {name: _listed(table[name]) if name in table.column_names else [] for name in names}
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise InputError(f"{path}: not a whole Parquet file ({reason})") from error


def _listed(column: Any) -> list[Any]:
    """Strings that are not UTF-8 come with lone surrogates, one for each byte."""
    import pyarrow as pa

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]


def _unreadable(text: str) -> float:
    """The share of characters that are no text."""
    bad = sum(map(text.count, CONTROL.decode())) + sum("\ud800" <= c <= "\udfff" for c in text)
    return bad / max(1, len(text))
