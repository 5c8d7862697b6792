"""When a run is measured and what becomes of the numbers: what the monitors share."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from lightning_maxmargin.core.ranks import Failure, as_failure
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.keys import Value, check_registered
from lightning_maxmargin.reduce import leave_group_at_exit
from lightning_maxmargin.schedule import next_step


class Monitor(Callback):
    """Measures at geometrically spaced steps, or every so many epochs, and logs.

    One process measures, or all do together (``everywhere``), all receive the numbers (or the error), and all log the
    same keys; one that is undefined is left out of the log and null in :attr:`last`.

    Args:
        per_decade: evaluations per factor of ten in steps.
        every_n_epochs: evaluates after so many epochs instead of the geometric steps.

    Attributes:
        last: the latest numbers by key.
        history: all of them, with ``step``.
        message: what the numbers mean, where they need a message.
        seconds: what all evaluations have cost.

    Raises:
        InputError: a number that is not positive.
    """

    #: Whether every process measures, together, and gets the same numbers; else the first one measures.
    everywhere: bool = False

    def __init__(self, per_decade: int = 10, every_n_epochs: int | None = None) -> None:
        self.per_decade, self.every_n_epochs = per_decade, every_n_epochs
        self.check_positive(per_decade=per_decade, every_n_epochs=every_n_epochs)
        self.last: dict[str, Value] = {}
        self.history: list[dict[str, Any]] = []
        self.message = ""
        self.seconds = 0.0
        self._next: int | None = None

    @staticmethod
    def check_positive(**numbers: int | None) -> None:
        """Raises InputError where one of these arguments is there and not positive."""
        for name, number in numbers.items():
            if number is not None and number < 1:
                raise InputError(f"monitor.{name}: {number}; expected a positive number")

    # --- what a monitor says ----------------------------------------------------------------------------------

    def gather(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[Failure | None, Any]:
        """What is read on all processes for the first one to measure, or what failed on one."""
        return None, None

    def measure(self, step: int, pl_module: pl.LightningModule, readings: Any) -> dict[str, Value]:
        """The numbers now, on the processes that measure; an error reaches all."""
        raise NotImplementedError

    def diagnose(self, pl_module: pl.LightningModule) -> str:
        """What the numbers mean, at the end; empty where they speak for themselves."""
        return ""

    # --- when -------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        leave_group_at_exit()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        self._next = None if self.every_n_epochs else next_step(step, self.per_decade)
        if self._next is not None and hasattr(pl_module, "pause_at"):
            # A module of many steps per batch ends one where the first of its monitors evaluates.
            paused: Any = pl_module.pause_at
            if paused is None or not step < paused < self._next:
                pl_module.pause_at = self._next  # type: ignore[assignment]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (self._next is not None and trainer.global_step >= self._next) or trainer.global_step == trainer.max_steps:
            self.evaluate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0 and not self._seen(trainer):
            self.evaluate(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step and not self._seen(trainer):
            self.evaluate(trainer, pl_module)
        if trainer.is_global_zero:
            self.message = self.diagnose(pl_module)

    def _seen(self, trainer: pl.Trainer) -> bool:
        return bool(self.history) and self.history[-1]["step"] == trainer.global_step

    # --- what becomes of the numbers --------------------------------------------------------------------------

    def evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Value]:
        """Measures now and logs on all processes."""
        start = time.perf_counter()
        failure, readings = self.gather(trainer, pl_module)
        values: dict[str, Value] = {}
        if (self.everywhere or trainer.is_global_zero) and failure is None:
            # An error is not raised here: the other processes wait for an answer, and would wait half an hour.
            try:
                values = self.measure(trainer.global_step, pl_module, readings)
            except Exception as error:
                failure = as_failure(error)
            self.seconds += time.perf_counter() - start
            values["monitor/seconds"] = self.seconds
        if trainer.world_size > 1:
            failure, values = trainer.strategy.broadcast((failure, values))
        if failure is not None:
            kind, message = failure
            raise kind(f"{type(self).__name__} at step {trainer.global_step}: {message}")
        self.last = values
        self.history.append({"step": trainer.global_step, **values})
        check_registered(values)
        numbers = {k: v for k, v in values.items() if isinstance(v, float) and abs(v) < float("inf")}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)
        # Without a logger: only for progress bars, checkpoints and early stopping.
        trainer.callback_metrics.update({k: torch.tensor(v) for k, v in numbers.items()})
        return values

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.seconds = state_dict["history"], state_dict["seconds"]
