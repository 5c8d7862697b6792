"""What W&B gets when a run is over: its summary, figures, report and, where asked for, checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_warn

from lightning_maxmargin.keys import STEP, registered
from lightning_maxmargin.run.wandb_logger import MarginWandbLogger


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


def close_wandb(loggers: Iterable[Logger]) -> None:
    """Ends their W&B runs: the next run of this process would be written into one that is open."""
    for logger in loggers:
        if isinstance(logger, MarginWandbLogger):
            logger.close()
        elif isinstance(logger, WandbLogger) and logger._experiment is not None:
            _tolerant(logger.experiment.finish)


def _tolerant(call: Callable[[], None]) -> None:
    import wandb

    try:
        call()
    except (wandb.Error, OSError) as error:
        rank_zero_warn(f"W&B has not got the end of the run ({type(error).__name__}: {error})")


def _tell(logger: WandbLogger, run_dir: Path, summary: dict[str, Any], wants_model: bool = False) -> None:
    import wandb

    run: Any = logger.experiment
    # Of a key with a best value W&B keeps both ends by itself, and one value would take their place.
    best = {key.name for key in registered() if key.best}
    run.summary.update({name: x for name, x in summary.items() if x is None or name not in best})
    figures = {f"figures/{path.stem}": wandb.Image(str(path)) for path in sorted((run_dir / "figures").glob("*.png"))}
    report = run_dir / "report.html"
    if report.is_file():
        page = {"report": wandb.Html(report.read_text(encoding="utf-8"), inject=False)}
        run.log({**figures, **page, STEP: summary["steps"]})
        _keep(run, "report", [report, run_dir / "summary.json", run_dir / "metrics.csv"])
    if wants_model:
        _keep(run, "model", [run_dir / "checkpoints" / "last.ckpt", run_dir / "config.yaml"])


def _keep(run: Any, kind: str, files: list[Path]) -> None:
    """An artifact of those of the files that are there."""
    import wandb

    artifact = wandb.Artifact(f"{kind}-{run.id}", type=kind)
    for file in filter(Path.is_file, files):
        artifact.add_file(str(file))
    run.log_artifact(artifact)
