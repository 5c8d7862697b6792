"""The epoch in which a run goes on that was saved after the last batch of one."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl


def begin_next_epoch(trainer: pl.Trainer) -> None:
    """Lets the next epoch begin where the one of the checkpoint is over; to be called in ``on_train_start``.

    Lightning counts that epoch as done and still begins the next as one that goes on: it is not counted as begun, so
    that a checkpoint after its last batch looks like one of a finished epoch. A run that goes on from there trained
    the same epoch twice, on the batches of before (Lightning 2.6.6, ``FitLoop.reset`` and ``on_advance_start``).
    """
    loop = trainer.fit_loop
    current: Any = loop.epoch_progress.current
    if loop.restarted_mid_epoch and current.ready == current.processed:
        loop.reset_restart_stage()
