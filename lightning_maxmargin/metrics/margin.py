"""Margins of the attention and of the head, in float64 whatever the precision of training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_maxmargin.core import take_token
from lightning_maxmargin.core.selection import hide


def score_rows(scores: Tensor, selected: Tensor, mask: Tensor | None = None) -> Tensor:
    """a_{i,alpha_i} - a_it, +inf at the selected token and on padding: (n, T).

    Args:
        scores: (n, T).
        selected: (n,).
        mask: (n, T) bool.

    Example:
        >>> score_rows(torch.tensor([[3.0, 1.0]]), torch.tensor([0])).tolist()
        [[inf, 2.0]]
    """
    rows = take_token(scores, selected)[:, None] - scores
    return -hide(-rows.scatter(1, selected[:, None], torch.inf), mask)


def attention_margin(scores: Tensor, selected: Tensor, norm: float, mask: Tensor | None = None) -> float:
    """min_{i, t != alpha_i} (a_{i,alpha_i} - a_it) / ||p||; +inf when no sequence has a second token.

    Args:
        scores: (n, T).
        selected: (n,).
        norm: of p or W.
        mask: (n, T) bool.

    Source: MMTS, the margin that p_mm maximises.

    Example:
        >>> attention_margin(torch.tensor([[3.0, 1.0]]), torch.tensor([0]), norm=4.0)
        0.5
    """
    return float(score_rows(scores.double(), selected, mask).min() / norm) if norm > 0 else 0.0


def label_rows(logits: Tensor, labels: Tensor) -> Tensor:
    """Y_i f_i for a binary head, f_{i,y_i} - max_{k != y_i} f_ik for classes: (n,).

    Args:
        logits: (n,) or (n, K).
        labels: (n,), in {-1, 1} or class indices.

    Example:
        >>> label_rows(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0])).tolist()
        [2.0]
    """
    if logits.ndim == 1:
        return labels * logits
    return score_rows(logits, labels).min(1).values


def label_margin(logits: Tensor, labels: Tensor, norm: float) -> float:
    """min_i of :func:`label_rows` / ||v||.

    Args:
        logits: (n,), or (n, K) of classes.
        labels: (n,) in {-1, 1}, or class indices.
        norm: ||v||.

    Source: MMTS, the label margin of the selected tokens.

    Example:
        >>> label_margin(torch.tensor([3.0, -2.0]), torch.tensor([1.0, -1.0]), norm=2.0)
        1.0
    """
    return float(label_rows(logits.double(), labels).min() / norm) if norm > 0 else 0.0


def relative_margin(achieved: float, optimal: float) -> float | None:
    """achieved / optimal: 1 exactly at the optimum, negative while a row is violated; None where there is no optimum.

    Args:
        achieved: the margin of the weights.
        optimal: that of the SVM.

    Example:
        >>> relative_margin(0.5, 1.0)
        0.5
    """
    return achieved / optimal if 0 < optimal < float("inf") else None


class MinMargin(Metric):
    """The smallest row over all batches and processes; divide by the norm for the margin.

    Args:
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = MinMargin()
        >>> metric.update(torch.tensor([2.0, 1.0]))
        >>> metric.compute().item()
        1.0
    """

    full_state_update = False
    higher_is_better = True
    smallest: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("smallest", torch.tensor(torch.inf, dtype=torch.float64), dist_reduce_fx="min")

    def update(self, rows: Tensor) -> None:
        if rows.numel():
            self.smallest = torch.minimum(self.smallest, rows.double().min())

    def compute(self) -> Tensor:
        return self.smallest
