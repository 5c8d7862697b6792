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
from lightning_maxmargin.metrics.rationale import (
    Agreement,
    agreement,
    chosen_units,
    iou_f1,
    r_precision,
    rationale_auprc,
    span_agreement,
    token_f1,
)
from lightning_maxmargin.metrics.rationale_metrics import (
    IouF1,
    RationaleAUPRC,
    RPrecision,
    TokenF1,
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
    "Agreement",
    "DirectionGap",
    "IouF1",
    "MinMargin",
    "RPrecision",
    "RationaleAUPRC",
    "SelectionAccuracy",
    "TokenF1",
    "agreement",
    "attention_margin",
    "chosen_units",
    "direction_gap",
    "entropy",
    "globally_optimal",
    "iou_f1",
    "label_margin",
    "label_rows",
    "locally_optimal",
    "r_precision",
    "rationale_auprc",
    "relative_margin",
    "score_rows",
    "selected_mass",
    "span_agreement",
    "sparsity",
    "token_f1",
]
