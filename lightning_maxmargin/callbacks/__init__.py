"""What is watched while training."""

from lightning_maxmargin.callbacks.ensemble import EnsembleMonitor
from lightning_maxmargin.callbacks.guard import FiniteGuard
from lightning_maxmargin.callbacks.interrupt import Interrupt
from lightning_maxmargin.callbacks.margins import MarginMonitor
from lightning_maxmargin.callbacks.progress import StepProgress
from lightning_maxmargin.callbacks.sources import AttentionSource
from lightning_maxmargin.callbacks.summary import RunSummary
from lightning_maxmargin.callbacks.tokens import TokenMonitor

__all__ = [
    "AttentionSource",
    "EnsembleMonitor",
    "FiniteGuard",
    "Interrupt",
    "MarginMonitor",
    "RunSummary",
    "StepProgress",
    "TokenMonitor",
]
