"""``metrics.csv`` of a run: whole rows on disk as they are measured, whatever happens meanwhile."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_warn

from lightning_maxmargin.atomic import write_text


class RowsLogger(CSVLogger):
    """``metrics.csv`` with a row on disk per evaluation: an interrupted run keeps what it has measured.

    Args:
        run_dir: where it goes.
        kept_to: a requeued run's own rows up to this step stay; None begins the file.
    """

    def __init__(self, run_dir: Path, kept_to: int | None = None) -> None:
        super().__init__(run_dir, name="", version="", flush_logs_every_n_steps=1)
        self._path, self._kept_to = run_dir / "metrics.csv", kept_to

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = RowsWriter(str(self._path.parent))
        return self._experiment

    def begin(self) -> None:
        """Leaves the rows up to where the run goes on; for one process, once, when it is about to train.

        Not where the logger is made: a run that is refused touches no row, and a process that logs after another, as
        the one that tests after forked ones have trained, finds what that has written.
        """
        names, rows = self._kept()
        if names:
            write_text(self._path, _table(names, rows))
        else:
            self._path.unlink(missing_ok=True)

    def _kept(self) -> tuple[list[str], list[dict[str, str]]]:
        if self._kept_to is None or not self._path.is_file():
            return [], []
        with self._path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            rows = [row for row in table if float(row["step"]) <= self._kept_to]
            return list(table.fieldnames or []), rows


class RowsWriter(ExperimentWriter):
    """Appends whole rows, or none; a new column is a new file in place of the old one.

    On a full disk training goes on, warned about once, and the rows wait in memory. Lightning's own writes a new header
    over the old file, of which a kill in that moment leaves nothing.
    """

    _warned = False

    def _check_log_dir_exists(self) -> None:
        """Lightning's removes the file, which a run that goes on still has to read should it be killed again."""

    def save(self) -> None:
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        # What another process, forked for training, has written, or the run before it went on.
        self.metrics_keys = self.metrics_keys or _names_of(path)
        try:
            if self._record_new_keys() or not path.is_file():
                write_text(path, _table(self.metrics_keys, [*_rows_of(path), *self.metrics]))
            else:
                _append(path, _names_of(path), self.metrics)
        except OSError as error:
            if not self._warned:
                rank_zero_warn(f"{path} cannot be written ({error.strerror or error}); training goes on, its rows wait")
            # The names that were new are not in the file yet.
            self.metrics_keys, self._warned = _names_of(path), True
            return
        self.metrics = []


def _table(names: Sequence[str], rows: Sequence[Mapping[str, Any]], header: bool = True) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, names)
    if header:
        table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _append(path: Path, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """All rows, or the file as it was."""
    before = path.stat().st_size
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(_table(names, rows, header=False))
    except OSError:
        os.truncate(path, before)
        raise


def _rows_of(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _names_of(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file).fieldnames or [])
