"""``metrics.csv`` of a run: whole rows on disk as they are measured, whatever happens meanwhile."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_warn

from lightning_maxmargin.atomic import synchronise, write_text
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.figures.table import Table, read_table

#: Seconds of rows that a power failure may cost, and the share of the time that making them safe may take: .2 ms each
#: on a disk of its own, and a hundred times as much on one of many.
UNSAFE, SAFETY = 1.0, 0.02


class RowsLogger(CSVLogger):
    """``metrics.csv`` with a row on disk per evaluation: an interrupted run keeps what it has measured.

    Args:
        run_dir: where it goes.
        kept_to: a requeued run's own rows up to this step stay; None begins the file.

    Raises:
        InputError: the rows that are to stay are damaged.
    """

    def __init__(self, run_dir: Path, kept_to: int | None = None) -> None:
        super().__init__(run_dir, name="", version="", flush_logs_every_n_steps=1)
        self._path, self._kept_to = run_dir / "metrics.csv", kept_to
        self._kept()  # refused before anything is made

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = RowsWriter(str(self._path.parent))
        return self._experiment

    def finalize(self, status: str) -> None:
        super().finalize(status)
        if isinstance(self._experiment, RowsWriter):
            self._experiment.close()

    def wait(self) -> None:
        """Keeps rows in memory until :meth:`begin`; a run that is refused before drops them."""
        self.experiment.waits = True

    def begin(self) -> None:
        """Leaves the rows up to where the run goes on; for one process, once, when it is about to train.

        Not where the logger is made: a run that is refused touches no row, and a process that logs after another, as
        the one that tests after forked ones have trained, finds what that has written.
        """
        self.experiment.waits = False
        kept = self._kept()
        if kept.is_torn:
            rank_zero_warn(f"{self._path} ends in half a row, as after a power failure; the run goes on without it")
        if kept.names:
            rows = [row for row in kept.rows if float(row["step"] or 0) <= (self._kept_to or 0)]
            write_text(self._path, _text(kept.names, rows), on_disk=True)
        else:
            self._path.unlink(missing_ok=True)

    def _kept(self) -> Table:
        if self._kept_to is None:
            return Table([], [])
        try:
            return read_table(self._path)
        except InputError as error:
            raise InputError(f"run_dir: {error}; mend that line, or move the file away to go on without it") from error


class RowsWriter(ExperimentWriter):
    """Appends whole rows, or none; a new column is a new file in place of the old one.

    On a full disk training goes on, warned about once, and the rows wait in memory. A run directory that is removed is
    made again, with all rows. Lightning's own writes a new header over the old file, of which a kill in that moment
    leaves nothing. Rows are safe from a power failure a second after they are measured, or later where the disk takes
    long for it.
    """

    #: Whether rows stay in memory.
    waits = False
    _warned = False
    _safe_until = 0.0
    #: The file, open: what it holds can be read where its name is gone.
    _held: BinaryIO | None = None

    def _check_log_dir_exists(self) -> None:
        """Lightning's removes the file, which a run that goes on still has to read should it be killed again."""

    def save(self) -> None:
        if self.waits or not self.metrics:
            return
        path = Path(self.metrics_file_path)
        try:
            if not path.is_file():
                self._make_again(path)
            # What another process, forked for training, has written, or the run before it went on.
            self.metrics_keys = self.metrics_keys or _names_of(path)
            if self._record_new_keys() or not path.is_file():
                write_text(path, _text(self.metrics_keys, [*_rows_of(path), *self.metrics]), on_disk=True)
            else:
                _append(path, _names_of(path), self.metrics)
                self._make_safe(path)
            self._hold(path)
        except OSError as error:
            if not self._warned:
                rank_zero_warn(f"{path} cannot be written ({error.strerror or error}); training goes on, its rows wait")
            # The names that were new are not in the file yet.
            self.metrics_keys, self._warned = _names_of(path), True
            return
        self.metrics = []

    def close(self) -> None:
        """Makes all rows safe, and lets go of the file; a later row opens it again."""
        self._safe_until = 0.0
        self._make_safe(Path(self.metrics_file_path))
        if self._held is not None:
            self._held.close()
            self._held = None

    def _make_again(self, path: Path) -> None:
        """The directory, and the file with all its rows where there was one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._held is None:
            return
        if self.hparams:
            self.log_hparams({})  # writes all of them
        self._held.seek(0)
        write_text(path, self._held.read().decode("utf-8"), on_disk=True)
        rank_zero_warn(f"{path} was removed while training; it is made again with all its rows")

    def _hold(self, path: Path) -> None:
        if self._held is None or not os.path.samestat(os.fstat(self._held.fileno()), path.stat()):
            if self._held is not None:
                self._held.close()
            self._held = path.open("rb")

    def _make_safe(self, path: Path) -> None:
        """To the disk, unless it was a moment ago or has no room in the time of the run."""
        begun = time.monotonic()
        if begun >= self._safe_until:
            with suppress(OSError):  # the row is written, and a file system without this does no more
                synchronise(path)
            self._safe_until = begun + max(UNSAFE, (time.monotonic() - begun) / SAFETY)


def _text(names: Sequence[str], rows: Sequence[Mapping[str, Any]], header: bool = True) -> str:
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
            file.write(_text(names, rows, header=False))
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
