"""Schedules of the rate where a module steps by itself: Lightning steps them under automatic optimisation alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_maxmargin.errors import InputError


def with_schedule(optimizer: Optimizer, make: Callable[..., Any] | None, automatic: bool = False) -> Any:
    """What ``configure_optimizers`` returns: the optimizer, and its schedule where one is made.

    Args:
        optimizer: of the module.
        make: makes a schedule of it, stepped after every step; a ReduceLROnPlateau after epochs, see
            :func:`step_schedules`.
        automatic: whether Lightning steps both: it is then told what a ReduceLROnPlateau looks at.
    """
    if make is None:
        return optimizer
    scheduler = make(optimizer)
    if not isinstance(scheduler, ReduceLROnPlateau):
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
    looks = {"monitor": _name_of(scheduler)} if automatic else {}
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch", **looks}}


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
    name = _name_of(config.scheduler)
    if name not in trainer.callback_metrics:
        known = ", ".join(sorted(map(str, trainer.callback_metrics)))
        raise InputError(
            f"model.lr_scheduler: ReduceLROnPlateau looks at {name}, which is not logged; there is {known}"
        )
    return trainer.callback_metrics[name]


def _name_of(scheduler: Any) -> str:
    """What it looks at: Lightning drops what a configuration says of it under manual optimisation; its own class keeps
    the name."""
    name: str | None = getattr(scheduler, "monitor", None)
    if name is None:
        raise InputError(
            "model.lr_scheduler: ReduceLROnPlateau does not say what it looks at; give "
            "pytorch_lightning.cli.ReduceLROnPlateau with its monitor"
        )
    return name
