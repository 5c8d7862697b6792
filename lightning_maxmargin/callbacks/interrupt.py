"""Ctrl-C, SIGTERM and SLURM's signal: all processes stop at the same step, with a checkpoint to go on from."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import SLURMEnvironment
from pytorch_lightning.callbacks import Callback

from lightning_maxmargin.callbacks.guard import is_finite

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAVE, STOP, REQUEUE = 1, 2, 3


class Interrupt(Callback):
    """Turns the first signal into a stop after the current ``training_step``; a second one ends the process at once.

    Lightning raises wherever the signal finds each process. Under DDP one then waits for a gradient and the other for a
    checkpoint, for ever. Here every process asks all others after each ``training_step``, so they stop together. Under
    SLURM the signal before a time limit (``SLURMEnvironment.requeue_signal``, SIGUSR1) does the same.

    Args:
        saver: a callback that makes the checkpoint, where the trainer has it: by its ``is_time`` rank 0 asks for one
            in the same question, and ``due`` is set on all processes.

    Attributes:
        stopped: whether the run ended so.
        requeue: whether SLURM's signal asked for it, so that the job is to run again.
    """

    def __init__(self, saver: Any = None) -> None:
        self.stopped = self.requeue = False
        self._saver = saver
        self._asked = 0  # SAVE by a clock, STOP by a signal, REQUEUE by SLURM's
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._saver is not None and self._saver not in trainer.callbacks:  # type: ignore[attr-defined]
            self._saver.on_train_start(trainer, pl_module)  # it saves all the same where the run is stopped
        environment: Any = trainer._accelerator_connector.cluster_environment
        requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        by_slurm = environment.requeue_signal if requeues else None

        def ask(number: int, frame: FrameType | None) -> None:
            self._asked = max(self._asked, REQUEUE if number == by_slurm else STOP)
            for s in STOP_SIGNALS:
                signal.signal(s, signal.SIG_DFL)

        try:
            wanted = (*STOP_SIGNALS, *([by_slurm] if by_slurm is not None else []))
            self._before = {s: signal.signal(s, ask) for s in wanted}
        except ValueError:
            # Not the main thread: signals are somebody else's business here.
            self._before = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == trainer.max_steps:
            # Done: there is nothing left to go on with.
            return
        own = self._asked
        saves = self._saver in trainer.callbacks  # type: ignore[attr-defined]
        if saves and trainer.is_global_zero and self._saver.is_time:
            own = max(own, SAVE)
        if not trainer.strategy.reduce_boolean_decision(own > 0, all=False):
            return
        # The signals of one request reach the processes one after another.
        asked = int(trainer.strategy.reduce(torch.tensor(own, device=pl_module.device), reduce_op="max"))
        if saves:
            self._saver.due = True
        if asked > SAVE:
            self.stopped, self.requeue, trainer.should_stop = True, asked == REQUEUE, True
            if not saves:
                self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        """Where nobody else saves; by the saver all the same, which knows what is none to go on from."""
        if self._saver is not None:
            self._saver.save(trainer)
        elif is_finite(trainer.lightning_module):
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)
