"""What is measured: plain functions, and torchmetrics on top for use in any LightningModule."""

from lightning_maxmargin.metrics.direction import DirectionGap, direction_gap
from lightning_maxmargin.metrics.margin import (
    MinMargin,
    attention_margin,
    label_margin,
    label_rows,
    relative_margin,
    score_rows,
)
from lightning_maxmargin.metrics.selection import (
    SelectionAccuracy,
    entropy,
    globally_optimal,
    locally_optimal,
    selected_mass,
    sparsity,
)

__all__ = [
    "DirectionGap",
    "MinMargin",
    "SelectionAccuracy",
    "attention_margin",
    "direction_gap",
    "entropy",
    "globally_optimal",
    "label_margin",
    "label_rows",
    "locally_optimal",
    "relative_margin",
    "score_rows",
    "selected_mass",
    "sparsity",
]
