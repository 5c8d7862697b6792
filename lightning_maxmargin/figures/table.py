"""``metrics.csv`` read back: a last row that a power failure has torn is left out, other damage is told by its line."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from lightning_maxmargin.errors import InputError

#: A float knows every whole number up to here.
LARGEST_STEP = 2**53


@dataclass(frozen=True)
class Table:
    """A file of rows.

    Attributes:
        names: of the columns; none where there is no file, or no whole line in it.
        rows: a cell for each name, empty where nothing was logged.
        is_torn: whether it ends in a part of a line, which is no row.
    """

    names: list[str]
    rows: list[dict[str, str]]
    is_torn: bool = False


def read_table(path: Path) -> Table:
    """Reads all whole rows.

    Raises:
        InputError: a whole line is damaged; the message names file and line.
    """
    if not path.is_file():
        return Table([], [])
    try:
        found = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    # After a power failure a file may have its length and not yet its content.
    end = found.rstrip(b"\0").rfind(b"\n") + 1
    try:
        lines = list(csv.reader(io.StringIO(found[:end].decode("utf-8"), newline=""), strict=True))
    except UnicodeDecodeError as error:
        line = found.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path} is damaged in line {line}: it is no text") from error
    except csv.Error as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not lines:
        return Table([], [], bool(found))
    names = lines[0]
    if "step" not in names:
        raise InputError(f"{path} is damaged in line 1: no column `step`")
    rows = [_row(path, line, names, cells) for line, cells in enumerate(lines[1:], start=2) if cells]
    return Table(names, rows, is_torn=end < len(found))


def _row(path: Path, line: int, names: list[str], cells: list[str]) -> dict[str, str]:
    if len(cells) != len(names):
        raise InputError(f"{path} is damaged in line {line}: {len(cells)} cells under {len(names)} names")
    for name, cell in zip(names, cells, strict=True):
        try:
            number = float(cell or 0)
        except ValueError as error:
            raise InputError(f"{path} is damaged in line {line}: {name} is {cell[:40]!r}, no number") from error
        if name == "step" and not (number.is_integer() and abs(number) < LARGEST_STEP):
            raise InputError(f"{path} is damaged in line {line}: step is {cell[:40]!r}, no whole number of a step")
    return dict(zip(names, cells, strict=True))
