"""Loggers of a run directory: CSV always, W&B offline unless the user says otherwise."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_warn

from lightning_maxmargin.atomic import write_text
from lightning_maxmargin.keys import registered

WandbMode = Literal["offline", "online", "disabled"]


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
            names, rows = self._kept()
            self._experiment = RowsWriter(str(self._path.parent))
            if names:
                write_text(self._path, _table(names, rows))
                self._experiment.metrics_keys = names
        return self._experiment

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


def mode_of(wandb: WandbMode | None) -> WandbMode:
    """What the user says, else what ``WANDB_MODE`` does, else ``offline``.

    Example:
        >>> mode_of("online")
        'online'
    """
    said = wandb or os.environ.get("WANDB_MODE", "").lower()
    # W&B's older names of two of them.
    said = {"dryrun": "offline", "run": "online"}.get(said, said)
    return next((mode for mode in get_args(WandbMode) if mode == said), "offline")


def run_loggers(
    run_dir: Path, name: str, wandb: WandbMode | None, project: str, kept_to: int | None = None
) -> list[Logger]:
    """The loggers of one run.

    Args:
        run_dir: where ``metrics.csv`` and the W&B run go.
        name: of the run.
        wandb: ``offline`` writes the run to disk (``wandb sync`` sends it later), ``online`` sends it; None is
            ``WANDB_MODE``, else offline.
        project: of W&B.
        kept_to: the step that a requeued run goes on from: its rows so far stay.
    """
    rows, mode = RowsLogger(run_dir, kept_to), mode_of(wandb)
    if mode == "disabled":
        return [rows]
    return [rows, MarginWandbLogger(run_dir, name, project, offline=mode == "offline")]


class MarginWandbLogger(WandbLogger):
    """W&B that never costs a training run, with an axis for every metric.

    Without a key, a network, a disk or a server it warns once and goes on offline, or not at all. The run id is kept in
    ``wandb_id.txt`` of the run directory, so that a requeued job goes on with its run. Each key of
    :mod:`~lightning_maxmargin.keys` is drawn against its own axis, everything else against ``trainer/global_step``.

    Args:
        run_dir: the run directory.
        name: of the run.
        project: of W&B.
        offline: write to disk alone.
    """

    def __init__(self, run_dir: Path, name: str, project: str, offline: bool = True) -> None:
        import wandb

        keep = run_dir / "wandb_id.txt"
        # Silent: the table at the end of a run says what there is to say; no copies of code or terminal output.
        settings = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False, init_timeout=30)
        super().__init__(
            name=name, save_dir=run_dir, project=project, offline=offline,
            id=keep.read_text().strip() if keep.is_file() else None, resume="allow", settings=settings,
        )  # fmt: skip
        self._wandb_init.pop("anonymous", None)  # deprecated: W&B warns of it at every start
        self._keep = keep
        self._made_in = os.getpid()
        self._lost = False
        self._defined = False

    @property
    def experiment(self) -> Any:
        """The W&B run; opened offline where it cannot be opened online."""
        if self._experiment is None and not self._lost:
            run = self._guarded(lambda: WandbLogger.experiment.fget(self), "W&B cannot be reached; going on offline")  # type: ignore[attr-defined]
            if run is None:
                self._lost, self._offline, self._wandb_init["mode"] = False, True, "offline"
                run = self._guarded(lambda: WandbLogger.experiment.fget(self), "W&B cannot write; going on without it")  # type: ignore[attr-defined]
            if run is not None and not self._defined:
                self._define(run)
        return self._experiment

    def _define(self, run: Any) -> None:
        self._defined = True
        if not hasattr(run, "define_metric"):
            return
        self._keep.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._keep, str(run.id))
        for key in registered():
            if key.format != "text":
                run.define_metric(key.name, step_metric=key.axis, summary=f"{key.best},last" if key.best else None)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self._guarded(
            lambda: super(MarginWandbLogger, self).log_metrics(metrics, step), "W&B stopped; going on without it"
        )

    def log_hyperparams(self, params: Any) -> None:
        self._guarded(
            lambda: super(MarginWandbLogger, self).log_hyperparams(params), "W&B stopped; going on without it"
        )

    def log_table(self, *args: Any, **kwargs: Any) -> None:
        self._guarded(
            lambda: super(MarginWandbLogger, self).log_table(*args, **kwargs), "W&B stopped; going on without it"
        )

    def finalize(self, status: str) -> None:
        self._guarded(lambda: super(MarginWandbLogger, self).finalize(status), "W&B did not close its run")
        # A process forked for training ends without the exit handlers that would write the rest of the run.
        if os.getpid() != self._made_in:
            self.close()

    def close(self) -> None:
        """Ends the W&B run: everything is on disk, and the next run of this process is another."""
        self._lost = False  # a run that W&B gave up on must end as well, or the next one would join it
        if self._experiment is not None and hasattr(self._experiment, "finish"):
            self._guarded(self._experiment.finish, "W&B did not close its run")
        self._experiment, self._lost = None, True

    def _guarded(self, call: Callable[[], Any], message: str) -> Any:
        """The call's result, or None and one warning when W&B or the disk fails."""
        import wandb

        if self._lost:
            return None
        try:
            return call()
        except (wandb.Error, OSError) as error:
            self._lost = True
            rank_zero_warn(
                f"{message} ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'})"
            )
            return None
