"""Schedules of the rate where a module steps by itself: Lightning steps them under automatic optimisation alone."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import LRSchedulerConfig
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_maxmargin.errors import InputError


def step_schedules(trainer: pl.Trainer, interval: str, count: int) -> None:
    """Steps the schedules of this interval whose frequency has come, by the module's ``lr_scheduler_step``.

    A ReduceLROnPlateau looks at what is logged, which is known after a batch of many steps: its interval is ``epoch``.

    Args:
        trainer: of the run.
        interval: ``step``, after each optimisation step, or ``epoch``, after each epoch of Lightning's.
        count: how many of these were made.

    Raises:
        InputError: a ReduceLROnPlateau does not say what it is to look at, or nothing of that name was logged.
    """
    for config in trainer.lr_scheduler_configs:
        looks = isinstance(config.scheduler, ReduceLROnPlateau)
        if ("epoch" if looks else config.interval) == interval and count % config.frequency == 0:
            value = _looked_at(trainer, config) if looks else None
            trainer.lightning_module.lr_scheduler_step(config.scheduler, value)


def _looked_at(trainer: pl.Trainer, config: LRSchedulerConfig) -> Any:
    """Lightning drops what a configuration says of it under manual optimisation; its own class keeps the name."""
    name = getattr(config.scheduler, "monitor", None)
    if name is None:
        raise InputError(
            "model.lr_scheduler: ReduceLROnPlateau does not say what it looks at; give "
            "pytorch_lightning.cli.ReduceLROnPlateau with its monitor"
        )
    if name not in trainer.callback_metrics:
        known = ", ".join(sorted(map(str, trainer.callback_metrics)))
        raise InputError(
            f"model.lr_scheduler: ReduceLROnPlateau looks at {name}, which is not logged; there is {known}"
        )
    return trainer.callback_metrics[name]
