"""Mirror descent with the potential ||w||_p^p / p: the lp geometry."""

from __future__ import annotations

import math
from typing import Any

from lightning_maxmargin.core.norms import mirror as mirror
from lightning_maxmargin.core.updates import Mirror, UpdateRule
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.optim.base import MarginOptimizer


class MirrorDescent(MarginOptimizer):
    """grad psi(w) <- grad psi(w) - lr g / ||g||_q with psi(w) = ||w||_p^p / p and 1/p + 1/q = 1.

    Entry by entry grad psi(w) = sign(w) |w|^(p-1), with the inverse sign(y) |y|^(q-1). The margin is the one of
    min ||w||_p. The gradient is normalised in l_q, the norm dual to l_p, because grad psi(w) lives there:
    ||grad psi(w)||_q = ||w||_p^(p-1) then grows by at most lr a step whatever the scale of g, and p = 2 is
    :class:`NormalizedGD` exactly. So ||w||_p grows as (lr steps)^(1/(p-1)): slower than steps for p > 2 (take a larger
    lr), faster for p < 2; for p near 1 a long run overflows (float32, p = 1.1, lr .1: after 70,000 steps).

    Args:
        params: parameters or groups.
        lr: the length, in l_q, of a step of grad psi(w).
        p: of the norm, above 1 and finite.

    Attributes:
        margin_norm: p.

    Raises:
        InputError: lr is not positive, or p is not above 1 and finite.

    Source: arXiv 2410.14581, where attention trained so converges in direction to the lp Att-SVM; gradients are not
    normalised there.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = MirrorDescent([w], lr=1.0, p=3.0)
        >>> w.grad = torch.tensor([-4.0, 0.0])
        >>> for _ in range(4):
        ...     optimizer.step()
        >>> w.tolist()  # grad psi = 4 = w^2
        [2.0, 0.0]
    """

    def __init__(self, params: Any, lr: float = 0.1, p: float = 2.0) -> None:
        if not 1 < p < math.inf:
            raise InputError(f"MirrorDescent: p is {p}; expected a number above 1 and finite (SignDescent is l_inf)")
        self.p = self.margin_norm = float(p)
        super().__init__(params, lr)

    def rule(self, group: dict[str, Any]) -> UpdateRule:
        return Mirror(self.p)
