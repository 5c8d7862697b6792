"""Descent on the factors of W = K Q', each normalised by itself: the nuclear norm."""

from __future__ import annotations

from typing import Any

import torch

from lightning_maxmargin.core.updates import Factored, UpdateRule
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.optim.base import MarginOptimizer


class FactoredGD(MarginOptimizer):
    """K <- K - lr unit(unit(g_K) + ridge K), likewise Q: for W = K Q' the margin of min ||W||_*.

    Among all factors of W the balanced ones have the smallest (||K||_F^2 + ||Q||_F^2) / 2, and it is ||W||_*: the same
    length of step keeps the two in balance, and a ridge that vanishes beside the data picks that minimum. The ridge is
    relative to the gradient, whose scale the log domain holds separately: added to the loss itself, as in the public
    code, 2.22e-16 stops the growth of W once the loss is as small. A tensor whose gradient is zero does not move.

    W grows as (lr steps)^2 / 4, so its steps grow too, and late ones jump between the rows. On visual 1 (lr .1, three
    starts) 1 - cos to the nuclear solution is 1e-4 at 2,000 steps, 2e-5 at 4,000 and 4e-5 at 8,000; with ridge 1e-3
    6e-5, 9e-6 and 4e-7; ridge 1e-2 stays at 1e-5, because it bounds each factor by 1 / ridge.
    On random data (n=6, T=8, d=10, lr .1, mean of 100 seeds) the cosine is .950 at 1,000 steps without a ridge and .994
    with the public code's, which stops W at a norm of about 135 (``maxmargin reproduce local_convergence``).
    A vector (the head) is normalised: its nuclear norm is its length.

    Args:
        params: parameters or groups, each tensor a factor.
        lr: the Frobenius length of every step of each factor.
        ridge: of each factor, beside a gradient of length 1; 2.22e-16 is the rounding of float64.

    Raises:
        InputError: lr is not positive, or ridge is negative.

    Source: TFSVM: with K and Q regularised by their Frobenius norms and the weight of it going to zero, K Q' converges
    to the nuclear-norm SVM; its experiments normalise each factor's gradient. Without a ridge it is a measured fact.

    Example:
        >>> K, Q = torch.nn.Parameter(torch.eye(2)), torch.nn.Parameter(torch.zeros(2, 2))
        >>> K.grad, Q.grad = torch.zeros(2, 2), torch.tensor([[-3e-30, 0.0], [-4e-30, 0.0]])
        >>> FactoredGD([K, Q], lr=1.0).step()
        >>> [[round(x, 4) for x in row] for row in (K @ Q.T).tolist()]
        [[0.6, 0.8], [0.0, 0.0]]
    """

    margin_norm = "nuclear"

    def __init__(self, params: Any, lr: float = 0.1, ridge: float = torch.finfo(torch.float64).eps) -> None:
        if not ridge >= 0:
            raise InputError(f"FactoredGD: ridge is {ridge}; expected zero or a positive number")
        super().__init__(params, lr, ridge=ridge)

    def rule(self, group: dict[str, Any]) -> UpdateRule:
        return Factored(group["ridge"])
