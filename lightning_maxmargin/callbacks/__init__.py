"""What is watched while training."""

from __future__ import annotations

import importlib
from typing import Any

from lightning_maxmargin.callbacks.ensemble_monitor import EnsembleMonitor
from lightning_maxmargin.callbacks.guard import FiniteGuard
from lightning_maxmargin.callbacks.head_monitor import HeadMonitor
from lightning_maxmargin.callbacks.interrupt import Interrupt
from lightning_maxmargin.callbacks.margin_monitor import MarginMonitor
from lightning_maxmargin.callbacks.predictions import Predictions
from lightning_maxmargin.callbacks.progress import StepProgress
from lightning_maxmargin.callbacks.rank_watch import RankWatch
from lightning_maxmargin.callbacks.stop_at_limit import StopAtLimit
from lightning_maxmargin.callbacks.tokens import TokenMonitor
from lightning_maxmargin.probe.sources import AttentionSource

__all__ = [
    "AttentionSource",
    "EnsembleMonitor",
    "FiniteGuard",
    "HeadMonitor",
    "Interrupt",
    "MarginMonitor",
    "Predictions",
    "RankWatch",
    "RunSummary",
    "StepProgress",
    "StopAtLimit",
    "TokenMonitor",
]


def __getattr__(name: str) -> Any:
    # It writes a run's files and stands above the monitors.
    if name != "RunSummary":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("lightning_maxmargin.run.summary").RunSummary
