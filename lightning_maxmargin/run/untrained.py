"""A fit that has trained nothing is refused before anything else is written at its end."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from lightning_maxmargin.errors import InputError


class RefuseUntrained(Callback):
    """Stands before every callback that writes at the end of fit.

    Raises:
        InputError: fit has seen no batch, by a limit that a checkpoint is beyond.
    """

    def __init__(self) -> None:
        self._has_trained = False

    def on_train_batch_end(self, *_: Any) -> None:
        self._has_trained = True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._has_trained:
            at = trainer.global_step
            raise InputError(f"trainer: nothing was trained, the run is at step {at} as before; see max_time")
