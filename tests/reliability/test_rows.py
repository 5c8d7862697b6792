"""metrics.csv: whole rows or none, whatever the disk does, and never a file that has lost what it held."""

from __future__ import annotations

import csv
import errno
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from lightning_maxmargin.run import rows as rows_module
from lightning_maxmargin.run.rows import RowsLogger

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_new_columns_keep_the_rows_before(tmp_path: Path) -> None:
    logger = RowsLogger(tmp_path)
    for step, row in enumerate(({"a": 1.0}, {"a": 2.0}, {"b": 3.0}, {"a": 4.0, "b": 5.0})):
        logger.log_metrics(row, step)
    found = rows(tmp_path)
    assert [row["a"] for row in found] == ["1.0", "2.0", "", "4.0"]
    assert [row["b"] for row in found] == ["", "", "3.0", "5.0"]
    assert [row["step"] for row in found] == ["0", "1", "2", "3"]


def test_rows_of_another_process_stay(tmp_path: Path) -> None:
    """Training is forked, and its test is not."""
    RowsLogger(tmp_path).log_metrics({"b": 1.0, "a": 2.0}, 0)
    header, row = (tmp_path / "metrics.csv").read_text().splitlines()
    # In an order of its own, as an older version may have written it.
    (tmp_path / "metrics.csv").write_text("\n".join(",".join(x.split(",")[::-1]) for x in (header, row)) + "\n")
    later = RowsLogger(tmp_path)
    later.log_metrics({"a": 3.0, "b": 4.0}, 1)
    later.log_metrics({"c": 5.0}, 2)
    assert [(row["a"], row["b"], row["c"]) for row in rows(tmp_path)] == [
        ("2.0", "1.0", ""), ("3.0", "4.0", ""), ("", "", "5.0"),
    ]  # fmt: skip


def test_a_run_that_goes_on_leaves_out_what_it_makes_again(tmp_path: Path) -> None:
    """Once, where it begins to train: the process that tests afterwards finds the rows of forked ones."""
    first = RowsLogger(tmp_path)
    for step in (1, 2, 5):
        first.log_metrics({"a": float(step)}, step)
    made = RowsLogger(tmp_path, kept_to=2)
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "5"], "a run that is refused touches no row"
    child = os.fork()
    if not child:
        try:
            made.begin()
            made.log_metrics({"a": 3.0}, 3)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    made.log_metrics({"test": 1.0}, 3)
    assert [(row["step"], row["a"], row["test"]) for row in rows(tmp_path)] == [
        ("1", "1.0", ""), ("2", "2.0", ""), ("3", "3.0", ""), ("3", "", "1.0"),
    ]  # fmt: skip
    RowsLogger(tmp_path).begin()
    assert not (tmp_path / "metrics.csv").exists(), "from the first step on nothing is kept"


@pytest.mark.parametrize("column", ["a", "b"])
def test_on_a_full_disk_rows_wait(column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, is_full = RowsLogger(tmp_path), False
    logger.log_metrics({"a": 0.0}, 0)
    before = (tmp_path / "metrics.csv").read_bytes()
    append, write = rows_module._append, rows_module.write_text

    def half(path: Path, names: Any, given: Any) -> None:
        if is_full:
            raise FULL
        append(path, names, given)

    def whole(path: Path, text: str) -> None:
        if is_full:
            raise FULL
        write(path, text)

    monkeypatch.setattr(rows_module, "_append", half)
    monkeypatch.setattr(rows_module, "write_text", whole)
    is_full = True
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in (1, 2, 3):
            logger.log_metrics({column: float(step)}, step)
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert len([w for w in said if "No space left on device" in str(w.message)]) == 1
    is_full = False
    logger.log_metrics({"a": 4.0}, 4)
    found = rows(tmp_path)
    assert [row["step"] for row in found] == ["0", "1", "2", "3", "4"]
    assert [row[column] for row in found][1:4] == ["1.0", "2.0", "3.0"]


def test_half_a_row_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("a,step\n1,0\n")

    class Half:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Half:
            return self

        def __exit__(self, *_: Any) -> None:
            self.file.close()

        def write(self, text: str) -> None:
            self.file.write(text[:3])
            self.file.flush()
            raise FULL

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args, **more: Half(opened(self, *args, **more)))
    with pytest.raises(OSError, match="No space"):
        rows_module._append(path, ["a", "step"], [{"a": 2, "step": 1}])
    monkeypatch.undo()
    assert path.read_text() == "a,step\n1,0\n"


def test_a_header_is_rewritten_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill at any moment of it leaves the old file: nothing else is opened for writing."""
    logger = RowsLogger(tmp_path)
    logger.log_metrics({"a": 0.0}, 0)
    before = (tmp_path / "metrics.csv").read_bytes()

    def killed(*_: Any) -> None:
        assert (tmp_path / "metrics.csv").read_bytes() == before
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        logger.log_metrics({"b": 1.0}, 1)
    assert (tmp_path / "metrics.csv").read_bytes() == before
