"""What becomes of an evaluation: all processes get its numbers or its error, and log the same keys."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch

from lightning_maxmargin.callbacks.evaluation import Measured, Pending
from lightning_maxmargin.keys import Value, check_registered
from lightning_maxmargin.reduce import gather

#: Logged by modules, and at every evaluation beside its numbers.
LOSS = "train/loss"


def share_outcome(
    trainer: pl.Trainer, name: str, pending: Pending, join: Callable[[list[Any]], Measured] | None
) -> tuple[Measured, float]:
    """Waits for an evaluation; what it found, the same numbers on all processes, and the seconds it has cost.

    Args:
        trainer: of the run.
        name: of the monitor, in an error.
        pending: the evaluation.
        join: of the details of all processes, where each measures a part.

    Raises: what one of the processes failed at, on all.
    """
    failure, found, seconds = pending.outcome()
    start = time.perf_counter()
    if join is not None:
        parts = gather((failure, found.details))
        failure = next((failed for failed, _ in parts if failed is not None), None)
        found = Measured({}) if failure is not None else join([part for _, part in parts])
    seconds += pending.seconds + time.perf_counter() - start
    # The clock of the first process is that of all.
    failure, values, seconds = trainer.strategy.broadcast((failure, found.values, seconds))
    if failure is not None:
        kind, message = failure
        raise kind(f"{name} at step {pending.step}: {message}")
    return Measured(values, found.details), seconds


def log_evaluation(
    trainer: pl.Trainer,
    pending: Pending,
    values: dict[str, Value],
    logged: Callable[[dict[str, float]], dict[str, float]],
) -> None:
    """Hands the numbers to loggers, at the step they belong to, and to progress bars, checkpoints and early stopping.

    Args:
        trainer: of the run.
        pending: the evaluation.
        values: its numbers by key.
        logged: what loggers get of them.
    """
    check_registered(values)
    numbers = {k: v for k, v in values.items() if isinstance(v, float) and abs(v) < float("inf")}
    for logger in trainer.loggers:
        logger.log_metrics(logged(numbers) | pending.losses, step=pending.step)
    # Without a logger: only for progress bars, checkpoints and early stopping. Nothing stays of the one before.
    for name in values.keys() - numbers.keys():
        trainer.callback_metrics.pop(name, None)
    trainer.callback_metrics.update({k: torch.tensor(v) for k, v in {**logged(numbers), **numbers}.items()})


def loss_of_this_step(trainer: pl.Trainer) -> dict[str, float]:
    """The loss that the training step before this has logged, or the latest of a module that logs no ``step``.

    Nothing where there is none, or it is the mean of more.
    """
    results: Any = getattr(trainer, "_results", None)
    logged = None if results is None else results.get(f"training_step.{LOSS}")
    metrics = trainer.callback_metrics
    if logged is None or not logged.meta.on_step or LOSS not in metrics:
        return {}
    # A module of many steps per batch says at which it has logged.
    step = metrics.get("step")
    return {LOSS: float(metrics[LOSS])} if step is None or int(step) == trainer.global_step else {}
