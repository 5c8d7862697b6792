"""What a column of a table must hold: texts, labels, spans; what it does not is told by its row."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.loaders import Table

Spans = list[tuple[int, int]]

LONE = re.compile("[\ud800-\udfff]")
INTEGRAL = re.compile(r"([+-]?\d+)\.0+")
MOST_NAMED = 20


def plain_texts(table: Table, column: str) -> tuple[list[str], int]:
    """The texts, and how many of their characters were replaced by U+FFFD.

    Raises:
        InputError: there is no such column, no row, or a text is no string.
    """
    values = _column(table, column, "text")
    if not values:
        raise InputError(f"{table.where}: there are no rows; expected documents")
    texts, replaced = [], 0
    for row, value in enumerate(values, 1):
        if not isinstance(value, str):
            raise InputError(f"{table.where}, row {row}: {column} is {_shown(value)}; expected a text")
        clean, count = LONE.subn("\ufffd", value)
        texts.append(clean)
        replaced += count
    return texts, replaced


def label_names(table: Table, column: str | None, needed: bool) -> list[str | None]:
    """The labels by name, None where a row has none.

    Raises:
        InputError: one is needed and absent, or is neither a string nor a number.

    Example:
        >>> label_names(Table({"label": [1.0, True, "pos", None]}, ["label"], "here"), "label", needed=False)
        ['1', 'True', 'pos', None]
    """
    if column is None or (not needed and column not in table.columns):
        return [None] * len(table)
    names = []
    for row, value in enumerate(_column(table, column, "label"), 1):
        if isinstance(value, (list, tuple, dict, bytes)):
            raise InputError(f"{table.where}, row {row}: {column} is {_shown(value)}; expected one name or number")
        name = _name(value)
        if name is None and needed:
            raise InputError(f"{table.where}, row {row}: there is no {column}; give every document one, or drop it")
        names.append(name)
    return names


def rationale_spans(table: Table, column: str, texts: list[str]) -> list[Spans | None]:
    """Half-open spans of characters, None where a row has none.

    Raises:
        InputError: a value is no list of pairs ``[start, end)`` within its text.
    """
    if column not in table.columns and column == "rationale":
        return [None] * len(texts)
    values = enumerate(_column(table, column, "rationale"), 1)
    return [_spans(value, len(texts[row - 1]), f"{table.where}, row {row}: {column}") for row, value in values]


def _column(table: Table, name: str, word: str) -> list[Any]:
    """The column of this name, which the user has given by ``data.WORD`` unless it is the word itself."""
    if name in table.columns:
        return table.columns[name]
    if not table.names:
        raise InputError(f"{table.where}: there are no rows; expected documents")
    there = ", ".join(_shown(other) for other in table.names[:MOST_NAMED])
    said = "" if name == word else f"data.{word}: "
    raise InputError(f"{said}{table.where}: there is no column {name!r}; the columns are {there}")


def _name(value: Any) -> str | None:
    """1.0 is "1", also as a string: so is a column of integers written where some were missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    name = LONE.sub("\ufffd", str(value)).strip()
    if integral := INTEGRAL.fullmatch(name):
        name = integral[1]
    elif isinstance(value, float) and value.is_integer() and abs(value) < 1e16:
        name = str(int(value))
    return name or None


def _spans(value: Any, length: int, where: str) -> Spans | None:
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is {_shown(value)}; expected a JSON list of [start, end]") from error
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{where} is {_shown(value)}; expected a list of [start, end]")
    return [_span(pair, length, where) for pair in value] or None


def _span(pair: Any, length: int, where: str) -> tuple[int, int]:
    if isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(_whole, pair)):
        start, end = map(int, pair)
        if 0 <= start < end <= length:
            return start, end
    raise InputError(
        f"{where} holds {_shown(pair)}; expected [start, end] with 0 <= start < end <= {length}, the text's length"
    )


def _whole(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer())


def _shown(value: Any, most: int = 60) -> str:
    """The value in at most ``most`` printable characters of one line."""
    shown = "null" if value is None else ascii(value) if LONE.search(str(value)[:most]) else repr(value)
    return shown if len(shown) <= most else shown[:most] + "..."
