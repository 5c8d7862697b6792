"""Tables by way of ``datasets``: files, and the splits of a Hugging Face data set.

What it refuses or cannot represent (another encoding, labels whose type changes after megabytes, a folder that cannot
be written to), and what it would change without a word, is left to the readers of ``text.plain``, which give the same
values, or one line that says where the file is wrong.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Any

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.packages import require_text_extra
from lightning_maxmargin.text.plain import long_fields, opened

PROBE_SECONDS = 5.0  # the hub's own client tries 6 times, 26 s where there is no network
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
#: Numbers that JSON has not: in a list of objects an infinite one becomes a missing value.
NO_NUMBERS = re.compile("NaN|Infinity")
CHUNK = 1 << 24
#: Kinds of JSON columns that are kept. In others large integers become floats, dates times, "1.0" beside 0 a number.
FAITHFUL = re.compile(r"(List\()*(Value\(')?(string|large_string|bool|u?int\d+|null)\W*")


@dataclass(frozen=True)
class Table:
    """The wanted columns of n rows.

    Attributes:
        columns: n values by name, for each wanted column there is.
        names: of all columns.
        where: for messages.
    """

    columns: dict[str, list[Any]]
    names: list[str]
    where: str

    def __len__(self) -> int:
        return max((len(values) for values in self.columns.values()), default=0)


def hub_tables(source: str, wanted: Sequence[str], cache: Path) -> dict[str, Table]:
    """The splits of the data set ``owner/name``, or ``owner/name:configuration``, of the Hugging Face hub.

    Names of classes stand for their numbers. Without a network, a copy in the cache is used if there is one.

    Raises:
        InputError: it cannot be had.
    """
    require_text_extra("datasets")
    name, _, configuration = source.partition(":")
    try:
        with _quiet() as datasets, _offline_where_unreachable(datasets):
            loaded = datasets.load_dataset(name, configuration or None, cache_dir=str(cache))
            return {split: _table(rows, wanted, f"{source}, split {split}") for split, rows in loaded.items()}
    # The hub's client raises what its network stack raises.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = f"; name it {name}:CONFIGURATION" if "onfig" in reason and not configuration else ""
        raise InputError(
            f"data: {source} is no file or folder here, and no data set that can be had from Hugging Face "
            f"({reason}){hint}"
        ) from error


def by_datasets(path: Path, kind: str, wanted: Sequence[str], cache: Path, delimiter: str = ",") -> Table | None:
    """What ``datasets`` reads; None where it does not or would change the values."""
    # A path with [ or * would be taken for a pattern, which may match another file.
    if has_magic(str(path.absolute())) or "::" in str(path) or "://" in str(path):
        return None
    try:
        if kind == "json" and not _is_faithful_json(path):
            return None
        with _quiet() as datasets:
            options = _csv_options(datasets, path, delimiter) if kind == "csv" else {}
            files = {"train": str(path.absolute())}
            rows = datasets.load_dataset(kind, data_files=files, split="train", cache_dir=str(cache), **options)
            table = _table(rows, wanted, str(path))
            kinds = [str(getattr(rows.features[name], "dtype", rows.features[name])) for name in table.columns]
    # Whatever it was, the plain reader gives the rows or says in one line what is wrong.
    except Exception:
        return None
    if kind == "json" and not (wanted[0] in table.columns and all(map(FAITHFUL.fullmatch, kinds))):
        return None
    return table


def _is_faithful_json(path: Path) -> bool:
    """Whether ``datasets`` reads the rows as they are, by what was seen of datasets 5.2.

    Where Arrow refuses a file that is one object, pandas takes it for columns, and spans for rows; then, and in a list
    of objects, lone surrogates are dropped, and infinite numbers.
    """
    with opened(path) as file:
        start = file.readline(CHUNK)
        if not start.lstrip().startswith("["):
            more = file.readline(CHUNK)
            if not isinstance(json.loads(start), dict) or not isinstance(json.loads(more), dict):
                return False
        file.seek(0)
        before = ""
        while part := file.read(CHUNK):
            if SURROGATE.search(before + part) or NO_NUMBERS.search(before + part):
                return False
            before = part[-len("Infinity") :]
    return True


def _csv_options(datasets: Any, path: Path, delimiter: str) -> dict[str, Any]:
    """Every column as strings: no text is taken for a number or a missing value.

    Raises:
        ValueError: pandas would change rows: it takes surplus fields for an index and drops blanks of a single column.
    """
    with opened(path) as file, long_fields():
        reader = csv.reader(file, delimiter=delimiter)
        header, first = next(reader, []), next(reader, [])
    if len(header) < 2 or len(first) > len(header) or len(set(header)) < len(header):
        raise ValueError("a case for the plain reader")
    strings = datasets.Features({name: datasets.Value("string") for name in header})
    return {"sep": delimiter, "keep_default_na": False, "features": strings}


def _table(rows: Any, wanted: Sequence[str], where: str) -> Table:
    names = list(rows.column_names)
    return Table({name: _values(rows, name) for name in wanted if name in names}, names, where)


def _values(rows: Any, name: str) -> list[Any]:
    values = list(rows[name][:])
    classes = getattr(rows.features[name], "names", None)
    if classes is None:
        return values
    return [None if value is None or value < 0 else classes[value] for value in values]  # -1: no label


@contextmanager
def _quiet() -> Iterator[Any]:
    """``datasets`` without progress bars and log lines."""
    import datasets

    bars, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield datasets
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


@contextmanager
def _offline_where_unreachable(datasets: Any) -> Iterator[None]:
    """Within it the hub's client does not try again and again where one short question is not answered.

    Raises:
        ConnectionError: that it was not, and what is asked for fails.
    """
    from huggingface_hub import constants

    before, unreachable = (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE), None
    if not any(before) and not _answers(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        unreachable = f"{constants.ENDPOINT} does not answer, and there is no copy in the cache"
    try:
        yield
    except Exception as error:
        if unreachable is None:
            raise
        raise ConnectionError(unreachable) from error
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _answers(endpoint: str) -> bool:
    from huggingface_hub.utils import get_session

    try:
        get_session().head(endpoint, timeout=PROBE_SECONDS)
    # Its network stack's own errors.
    except Exception:
        return False
    return True
