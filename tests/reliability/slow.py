"""A run that takes its time: many of them at once cost no more than one."""

from __future__ import annotations

import time
from typing import Any

from pytorch_lightning.callbacks import Callback


class Slow(Callback):
    """Waits after every batch.

    Args:
        seconds: to wait.
    """

    def __init__(self, seconds: float = 0.1) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, *_: Any) -> None:
        time.sleep(self.seconds)
