"""What W&B gets when a run is over: its summary, figures, report and checkpoint; of one that failed, why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from pytorch_lightning.utilities import rank_zero_warn

from lightning_maxmargin.callbacks.interrupt import Interrupt
from lightning_maxmargin.callbacks.monitor import Monitor
from lightning_maxmargin.errors import InputError, NonFiniteError, OutputError, RankError
from lightning_maxmargin.keys import STEP, registered
from lightning_maxmargin.run.summary import interrupted_at, plain
from lightning_maxmargin.run.wandb_logger import OF_TWO, MarginWandbLogger

#: Errors whose message says it all.
OURS = (InputError, NonFiniteError, OutputError, RankError)


def tell_wandb(loggers: Iterable[Logger], run_dir: Path, summary: dict[str, Any]) -> None:
    """Hands the files of a finished run to its W&B runs, Lightning's own loggers' as well.

    Args:
        loggers: of the trainer; those of W&B are told.
        run_dir: with ``report.html`` and ``figures/`` where they were drawn.
        summary: of the run; every key of it goes to the summary of the W&B run.
    """
    for logger in loggers:
        if isinstance(logger, MarginWandbLogger):
            own, wants_model = logger, logger.wants_model
            logger.later(lambda own=own, wants=wants_model: _tell(own, run_dir, summary, wants))  # type: ignore[misc]
        elif isinstance(logger, WandbLogger):
            _tolerant(lambda own=logger: _tell(own, run_dir, summary))  # type: ignore[misc]


def close_wandb(trainer: pl.Trainer, error: BaseException | None = None) -> None:
    """Ends the W&B runs of a trainer: the next run of this process would be written into one that is open.

    Args:
        trainer: of the run.
        error: what has ended it, where it has failed: the W&B run has failed as well, and its summary says why.
    """
    failed = None if error is None else last_known(trainer, error)
    # Where a forked process has failed there is no second one to wait for.
    is_second = error is None and isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
    share = OF_TWO if is_second else 1.0
    for logger in trainer.loggers:
        if isinstance(logger, MarginWandbLogger):
            logger.close(failed, share)
        elif isinstance(logger, WandbLogger) and logger._experiment is not None:
            _tolerant(partial(_close, logger._experiment, failed))


def _close(run: Any, failed: dict[str, Any] | None) -> None:
    """Of a logger of the user's own class."""
    if failed is not None:
        run.summary.update(failed)
    run.finish(exit_code=int(failed is not None))


def last_known(trainer: pl.Trainer, error: BaseException) -> dict[str, Any]:
    """What the summary of a run that failed gets: the last numbers of its monitors, and why it failed."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    found: dict[str, Any] = {}
    for monitor in callbacks:
        found |= monitor.last if isinstance(monitor, Monitor) else {}
    found = {name: plain(value) for name, value in found.items()}
    if isinstance(error, KeyboardInterrupt) and any(isinstance(c, Interrupt) and c.stopped for c in callbacks):
        return _without_best(found)  # it has ended in order, and its summary says so
    return {**_without_best(found), "message": _why(trainer, error)}


def _why(trainer: pl.Trainer, error: BaseException) -> str:
    # Lightning turns an interrupt before the first step into exit(1).
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return interrupted_at(trainer)
    line = (str(error).splitlines() or [""])[0]
    return line if isinstance(error, OURS) else f"{type(error).__name__}: {line}"


def close_where_it_failed(trainer: pl.Trainer) -> None:
    """Lets a forked or spawned process end the W&B run that is its own: there Lightning says of no failure."""
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        trainer._run = partial(_run_to_its_end, trainer, trainer._run)  # type: ignore[method-assign]


def _run_to_its_end(trainer: pl.Trainer, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return run(*args, **kwargs)
    except BaseException as error:
        close_wandb(trainer, error)
        raise


def _tolerant(call: Callable[[], None]) -> None:
    import wandb

    try:
        call()
    except (wandb.Error, OSError) as error:
        rank_zero_warn(f"W&B has not got the end of the run ({type(error).__name__}: {error})")


def _tell(logger: WandbLogger, run_dir: Path, summary: dict[str, Any], wants_model: bool = False) -> None:
    import wandb

    run: Any = logger.experiment
    run.summary.update(_without_best(summary))
    figures = {f"figures/{path.stem}": wandb.Image(str(path)) for path in sorted((run_dir / "figures").glob("*.png"))}
    report = run_dir / "report.html"
    if report.is_file():
        page = {"report": wandb.Html(report.read_text(encoding="utf-8"), inject=False)}
        run.log({**figures, **page, STEP: summary["steps"]})
        _keep(run, "report", [report, run_dir / "summary.json", run_dir / "metrics.csv"])
    if wants_model:
        _keep(run, "model", [run_dir / "checkpoints" / "last.ckpt", run_dir / "config.yaml"])


def _without_best(values: dict[str, Any]) -> dict[str, Any]:
    """Of a key with a best value W&B keeps both ends by itself, and one value would take their place."""
    best = {key.name for key in registered() if key.best}
    return {name: x for name, x in values.items() if x is None or name not in best}


def _keep(run: Any, kind: str, files: list[Path]) -> None:
    """An artifact of those of the files that are there."""
    import wandb

    artifact = wandb.Artifact(f"{kind}-{run.id}", type=kind)
    for file in filter(Path.is_file, files):
        artifact.add_file(str(file))
    run.log_artifact(artifact)
