"""Dual acceleration: the fastest known road to the maximum-margin direction."""

from __future__ import annotations

from typing import Any, ClassVar

from lightning_maxmargin.core.updates import Accelerated, UpdateRule
from lightning_maxmargin.optim.base import MarginOptimizer


class AcceleratedMargin(MarginOptimizer):
    """m <- t/(t+1) (m + g), w <- w - lr (m + g): Nesterov momentum on the dual of the margin problem.

    g must be sized as :class:`~lightning_maxmargin.core.exact.Directions` are, by its weights, not by its length:
    ``gradient: exact`` gives it so.

    Args:
        params: parameters or groups.
        lr: 1 for tokens of about unit length.

    Raises:
        InputError: lr is not positive.

    Source: Ji, Srebro, Telgarsky, "Fast margin maximization via dual acceleration" (ICML 2021), who prove an error of
    order 1/t^2 for linear models. For attention it is a measured fact, not a theorem.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = AcceleratedMargin([w], lr=1.0)
        >>> for _ in range(2):
        ...     w.grad = torch.tensor([-1.0])
        ...     optimizer.step()
        >>> w.item()
        2.5
    """

    exact_only: ClassVar[bool] = True

    def __init__(self, params: Any, lr: float = 1.0) -> None:
        super().__init__(params, lr)

    def rule(self, group: dict[str, Any]) -> UpdateRule:
        return Accelerated()
