"""Ctrl-C and SIGTERM: all processes stop at the same step, with a checkpoint to go on from."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt(Callback):
    """Turns the first signal into a stop after the current ``training_step``; a second one ends the process at once.

    Lightning raises wherever the signal finds each process. Under DDP one then waits for a gradient and the other for a
    checkpoint, for ever. Here every process asks all others after each ``training_step``, so they stop together.

    Attributes:
        stopped: whether the run ended so.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._asked = False
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        def ask(number: int, frame: FrameType | None) -> None:
            self._asked = True
            for s in STOP_SIGNALS:
                signal.signal(s, signal.SIG_DFL)

        try:
            self._before = {s: signal.signal(s, ask) for s in STOP_SIGNALS}
        except ValueError:
            # Not the main thread: signals are somebody else's business here.
            self._before = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == trainer.max_steps:
            # Done: there is nothing left to go on with.
            return
        if not trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            return
        self.stopped = True
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt")
        trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)
