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

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt(Callback):
    """Turns the first signal into a stop after the current ``training_step``; a second one ends the process at once.

    Lightning raises wherever the signal finds each process. Under DDP one then waits for a gradient and the other for a
    checkpoint, for ever. Here every process asks all others after each ``training_step``, so they stop together. Under
    SLURM the signal before a time limit (``SLURMEnvironment.requeue_signal``, SIGUSR1) does the same.

    Attributes:
        stopped: whether the run ended so.
        requeue: whether SLURM's signal asked for it, so that the job is to run again.
    """

    def __init__(self) -> None:
        self.stopped = self.requeue = False
        self._asked = 0  # 1 by a signal to stop, 2 by SLURM's
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        environment: Any = trainer._accelerator_connector.cluster_environment
        requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        by_slurm = environment.requeue_signal if requeues else None

        def ask(number: int, frame: FrameType | None) -> None:
            self._asked = max(self._asked, 2 if number == by_slurm else 1)
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
        if not trainer.strategy.reduce_boolean_decision(self._asked > 0, all=False):
            return
        # The signals of one request reach the processes one after another.
        asked = trainer.strategy.reduce(torch.tensor(self._asked, device=pl_module.device), reduce_op="max")
        self.stopped, self.requeue = True, int(asked) == 2
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt")
        trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)
