"""The plausibility and faithfulness of rationales as torchmetrics: per document, then the mean over documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_maxmargin.metrics.faithfulness import ERASER_BINS, comprehensiveness, sufficiency
from lightning_maxmargin.metrics.rationale import (
    chosen_units,
    r_precision,
    rationale_auprc,
    span_agreement,
    token_f1,
)


class DocumentMean(Metric):
    """The mean of a number per document, NaN left out; ``documents`` and ``left_out`` count both kinds."""

    full_state_update = False
    higher_is_better = True
    total: Tensor
    documents: Tensor
    left_out: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("documents", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("left_out", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def count(self, values: Tensor) -> None:
        """Adds the documents' numbers, (n,)."""
        self.total += float(values.nansum())
        self.documents += int((~values.isnan()).sum())
        self.left_out += int(values.isnan().sum())

    def compute(self) -> Tensor:
        return self.total / self.documents


class RationaleAUPRC(DocumentMean):
    """Mean :func:`~lightning_maxmargin.metrics.rationale.rationale_auprc` of the documents seen.

    Example:
        >>> metric = RationaleAUPRC()
        >>> metric.update(torch.tensor([[0.9, 0.5], [0.1, 0.2]]), torch.tensor([[True, False], [False, False]]))
        >>> metric.compute().item(), metric.left_out.item()
        (1.0, 1)
    """

    def update(self, scores: Tensor, marked: Tensor, mask: Tensor | None = None) -> None:
        self.count(rationale_auprc(scores, marked, mask))


class RPrecision(DocumentMean):
    """Mean :func:`~lightning_maxmargin.metrics.rationale.r_precision` of the documents seen.

    Example:
        >>> metric = RPrecision()
        >>> metric.update(torch.tensor([[0.9, 0.5, 0.7]]), torch.tensor([[True, True, False]]))
        >>> metric.compute().item()
        0.5
    """

    def update(self, scores: Tensor, marked: Tensor, mask: Tensor | None = None) -> None:
        self.count(r_precision(scores, marked, mask))


class TokenF1(DocumentMean):
    """Mean :func:`~lightning_maxmargin.metrics.rationale.token_f1` of the documents seen, ERASER's macro F1.

    Args:
        share: of the units that are chosen, as in :func:`chosen_units`; as many as are marked where None.
        threshold: instead of a share, the score from which a unit is chosen.
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = TokenF1(share=0.5)
        >>> metric.update(torch.tensor([[0.9, 0.5, 0.7]]), torch.tensor([[True, False, False]]))
        >>> round(metric.compute().item(), 4)
        0.6667
    """

    def __init__(self, share: float | None = None, threshold: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.share, self.threshold = share, threshold

    def update(self, scores: Tensor, marked: Tensor, mask: Tensor | None = None) -> None:
        self.count(token_f1(scores, marked, mask, share=self.share, threshold=self.threshold))


class IouF1(Metric):
    """ERASER's :func:`~lightning_maxmargin.metrics.rationale.iou_f1` over the documents seen: F1 of mean P and mean R.

    Args:
        share: of the units that are chosen, as in :func:`chosen_units`; as many as are marked where None.
        threshold: instead of a share, the score from which a unit is chosen.
        iou: overlap from which two spans match.
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = IouF1(share=0.5)
        >>> metric.update(torch.tensor([[0.9, 0.7, 0.5, 0.4]]), torch.tensor([[True, False, False, False]]))
        >>> metric.compute().item()
        1.0
    """

    full_state_update = False
    higher_is_better = True
    sums: Tensor
    counts: Tensor
    left_out: Tensor

    def __init__(
        self, share: float | None = None, threshold: float | None = None, iou: float = 0.5, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.share, self.threshold, self.iou = share, threshold, iou
        # Of precision and of recall.
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("left_out", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, marked: Tensor, mask: Tensor | None = None) -> None:
        chosen = chosen_units(scores, marked, mask, share=self.share, threshold=self.threshold)
        spans = span_agreement(chosen, marked, mask, iou=self.iou)
        both = torch.stack([spans.precision, spans.recall])
        self.sums += both.nansum(1).to(self.sums.device)
        self.counts += (~both.isnan()).sum(1).to(self.counts.device)
        self.left_out += int(spans.recall.isnan().sum())

    def compute(self) -> Tensor:
        P, R = self.sums[0] / self.counts[0].clamp_min(1), self.sums[1] / self.counts[1]
        return (2 * P * R / (P + R)).masked_fill(P + R == 0, 0.0)


class HeadAOPC(DocumentMean):
    """What the two AOPC at the head share."""

    def __init__(self, bins: Sequence[float] = ERASER_BINS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bins = tuple(bins)


class Comprehensiveness(HeadAOPC):
    """Mean AOPC of :func:`~lightning_maxmargin.metrics.faithfulness.comprehensiveness` at the head.

    Example:
        >>> metric = Comprehensiveness(bins=[0.5])
        >>> metric.update(torch.zeros(1, 2), torch.tensor([[[2.0], [0.0]]]))
        >>> round(metric.compute().item(), 4)
        0.2311
    """

    def update(
        self, scores: Tensor, evidence: Tensor, mask: Tensor | None = None, rationale: Tensor | None = None
    ) -> None:
        self.count(comprehensiveness(scores, evidence, mask, rationale=rationale, bins=self.bins).mean(1))


class Sufficiency(HeadAOPC):
    """Mean AOPC of :func:`~lightning_maxmargin.metrics.faithfulness.sufficiency` at the head; low is good.

    Example:
        >>> metric = Sufficiency(bins=[0.5])
        >>> metric.update(torch.zeros(1, 2), torch.tensor([[[2.0], [0.0]]]))
        >>> round(metric.compute().item(), 4)
        -0.1497
    """

    higher_is_better = False

    def update(
        self, scores: Tensor, evidence: Tensor, mask: Tensor | None = None, rationale: Tensor | None = None
    ) -> None:
        self.count(sufficiency(scores, evidence, mask, rationale=rationale, bins=self.bins).mean(1))
