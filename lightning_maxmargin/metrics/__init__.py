"""What is measured: plain functions, and torchmetrics on top for use in any LightningModule."""

from lightning_maxmargin.metrics.aopc_bounds import Bounds, aopc_bounds, normalised_aopc
from lightning_maxmargin.metrics.direction import DirectionGap, direction_gap
from lightning_maxmargin.metrics.faithfulness import (
    ERASER_BINS,
    Faithfulness,
    aopc,
    comprehensiveness,
    head_probabilities,
    head_probability,
    sufficiency,
)
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
    Comprehensiveness,
    IouF1,
    RationaleAUPRC,
    RPrecision,
    Sufficiency,
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
    "ERASER_BINS",
    "Agreement",
    "Bounds",
    "Comprehensiveness",
    "DirectionGap",
    "Faithfulness",
    "IouF1",
    "MinMargin",
    "RPrecision",
    "RationaleAUPRC",
    "SelectionAccuracy",
    "Sufficiency",
    "TokenF1",
    "agreement",
    "aopc",
    "aopc_bounds",
    "attention_margin",
    "chosen_units",
    "comprehensiveness",
    "direction_gap",
    "entropy",
    "globally_optimal",
    "head_probabilities",
    "head_probability",
    "iou_f1",
    "label_margin",
    "label_rows",
    "locally_optimal",
    "normalised_aopc",
    "r_precision",
    "rationale_auprc",
    "relative_margin",
    "score_rows",
    "selected_mass",
    "span_agreement",
    "sparsity",
    "sufficiency",
    "token_f1",
]
