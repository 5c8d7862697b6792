"""How far two directions are apart, without the rounding of 1 - cos."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_maxmargin.core.norms import unit


def direction_gap(u: Tensor, w: Tensor) -> float | None:
    """||u/|u| - w/|w|||^2 / 2 in float64, which is 1 - cos(u, w) but never rounds to zero or below.

    In float32, 1 - cos gave -1.2e-7 for a true 5e-9.

    Args:
        u: any shape.
        w: the same shape (or one that flattens to the same length).

    Returns:
        A number in [0, 2]; None when either has no direction (zero, NaN or Inf).

    Example:
        >>> direction_gap(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 3.0]))
        1.0
    """
    u, w = (unit(x.detach().to("cpu", torch.float64).flatten()) for x in (u, w))
    if not (u.any() and w.any() and u.isfinite().all() and w.isfinite().all()):
        return None
    return float((u - w).square().sum() / 2)


class DirectionGap(Metric):
    """Mean :func:`direction_gap` over the pairs seen; directions need no gradient and no batch.

    Args:
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = DirectionGap()
        >>> metric.update(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]))
        >>> metric.compute().item()
        0.0
    """

    full_state_update = False
    higher_is_better = False
    total: Tensor
    pairs: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pairs", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, u: Tensor, w: Tensor) -> None:
        gap = direction_gap(u, w)
        if gap is not None:
            self.total += gap
            self.pairs += 1

    def compute(self) -> Tensor:
        return self.total / self.pairs
