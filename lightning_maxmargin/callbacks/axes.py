"""What W&B draws each key against."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pytorch_lightning.loggers import Logger, WandbLogger

from lightning_maxmargin.keys import registered


def define_axes(run: Any) -> None:
    """Tells a W&B run the axis of every key, and which end of its curve to keep beside the last value."""
    if hasattr(run, "define_metric"):
        for key in registered():
            if key.format != "text":
                run.define_metric(key.name, step_metric=key.axis, summary=f"{key.best},last" if key.best else None)


def define_axes_of(loggers: Iterable[Logger]) -> None:
    """Does so for Lightning's own W&B loggers among these."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and not getattr(logger, "has_axes", False):
            define_axes(logger.experiment)
