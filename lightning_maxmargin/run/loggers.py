"""The loggers of a run: its own rows always, W&B as the user says and offline else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args

from jsonargparse import Namespace
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.run.options import WANDB_WORDS, WandbMode
from lightning_maxmargin.run.rows import RowsLogger
from lightning_maxmargin.run.wandb_logger import MarginWandbLogger

#: Seconds of a day.
LONGEST_WAIT = 86_400.0


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


def wandb_words(config: Namespace) -> dict[str, Any]:
    """What the config says of W&B beside the mode: options of ``wandb.init``, ``log_model`` and ``wait``.

    Raises:
        InputError: one is none.
    """
    found = {name: config.get(f"wandb_{name}") for name in WANDB_WORDS}
    if (wait := found["wait"]) is not None and not 0 <= wait <= LONGEST_WAIT:
        raise InputError(f"wandb_wait: {wait}; expected seconds, 0 or more and at most a day")
    return {name: value for name, value in found.items() if value is not None}


def run_loggers(run_dir: Path, config: Namespace, given: Any, kept_to: int | None = None) -> list[Logger]:
    """The loggers of one run: those that the config names, W&B where it names none, and the run's own rows always.

    The report and the tables of a run are made from these rows, whatever else is logged to.

    Args:
        run_dir: where ``metrics.csv`` and the W&B run go.
        config: of ``fit``: ``name``, ``wandb`` (``offline`` writes the run to disk, ``wandb sync`` sends it later;
            ``online`` sends it; None is ``WANDB_MODE``, else offline) and ``wandb_*``.
        given: what the config says of loggers: True or None, False, or loggers.
        kept_to: the step that the run goes on from in its directory: its rows so far stay.

    Raises:
        InputError: the config names loggers of its own, and says something of the W&B run that it then has not; or one
            of them would write its rows among the run's own.
    """
    rows, words = RowsLogger(run_dir, kept_to), wandb_words(config)
    if given in (None, True):
        mode = mode_of(config.wandb)
        if mode == "disabled":
            return [rows]
        return [rows, MarginWandbLogger(run_dir, config.name, offline=mode == "offline", **words)]
    if words or config.wandb in ("online", "offline"):
        word = f"wandb_{next(iter(words))}" if words else "wandb"
        raise InputError(f"{word}: trainer.logger names the loggers, so this is of none; leave one of the two out")
    if not given:
        return [rows]
    loggers = given if isinstance(given, list) else [given]
    for logger in loggers:
        # Its file has the name of the run's own.
        if isinstance(logger, CSVLogger) and Path(logger.log_dir).resolve() == run_dir.resolve():
            raise InputError(
                f"trainer.logger: {type(logger).__name__} would write among the rows of the run itself, in "
                f"{run_dir / 'metrics.csv'}; give it another directory, or leave it out: they are always written"
            )
    return [*_never_waiting(loggers, run_dir), rows]


def _never_waiting(loggers: list[Logger], run_dir: Path) -> list[Logger]:
    """The loggers, those of Lightning's for W&B such as cost no training; the first's run is gone on with."""
    keep: Path | None = run_dir / "wandb_id.txt"
    found: list[Logger] = []
    for logger in loggers:
        # Not those of a class of the user's own.
        if type(logger) is WandbLogger:
            logger, keep = MarginWandbLogger.of_lightnings_own(logger, keep), None
        found.append(logger)
    return found
