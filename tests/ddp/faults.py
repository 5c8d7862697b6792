"""A callback that makes one process raise, hang, stop or die, named by the configs of test_lost_ranks."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class Fault(Callback):
    """Does it at this optimisation step of this rank."""

    def __init__(self, what: str, rank: int, step: int = 3) -> None:
        self.what, self.rank, self.step = what, rank, step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_rank != self.rank or trainer.global_step != self.step:
            return
        if self.what == "raises":
            raise ValueError("only here")
        if self.what == "hangs":
            time.sleep(600)
        os.kill(os.getpid(), signal.SIGKILL if self.what == "dies" else signal.SIGSTOP)


class Ask(Callback):
    """Sends this process a signal at this optimisation step, as a scheduler does."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)
