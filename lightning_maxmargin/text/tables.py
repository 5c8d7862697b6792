"""Files of records as columns of values: CSV, TSV, JSON, JSONL and Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.loaders import Table, by_datasets
from lightning_maxmargin.text.plain import plain_csv, plain_json, plain_parquet

FORMATS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
KNOWN = ".csv, .tsv, .jsonl, .json (these also .gz) or .parquet"


def format_of(path: Path) -> str | None:
    """``csv``, ``json`` or ``parquet`` by the file's name; None where it is none of them.

    Example:
        >>> format_of(Path("reviews.CSV.gz")), format_of(Path("reviews.docx"))
        ('csv', None)
    """
    name = path.name.lower()
    kind = FORMATS.get(Path(name.removesuffix(".gz")).suffix)
    return None if kind == "parquet" and name.endswith(".gz") else kind


def delimiter_of(path: Path) -> str:
    return "\t" if path.name.lower().removesuffix(".gz").endswith(".tsv") else ","


def read_table(path: Path, wanted: Sequence[str], cache: Path) -> Table:
    """The wanted columns of one file, as far as it has them.

    Args:
        path: the file.
        wanted: column names.
        cache: of ``datasets``.

    Raises:
        InputError: there is no such file, or it is not what its name says.
    """
    kind = format_of(path)
    if kind is None:
        raise InputError(f"{path}: not a kind of file that can be read; expected {KNOWN}")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise InputError(f"{path}: the file is empty")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    table = by_datasets(path, kind, wanted, cache, delimiter_of(path))
    if table is not None:
        return table
    if kind == "csv":
        columns = plain_csv(path, delimiter_of(path))
    elif kind == "json":
        columns = plain_json(path)
    else:
        columns = plain_parquet(path, wanted)
    return Table({name: columns[name] for name in wanted if name in columns}, list(columns), str(path))
