"""Steepest descent in the l_inf and the spectral norm: every step has length lr in that norm."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.optim.base import MarginOptimizer, scaled, unit


class SignDescent(MarginOptimizer):
    """w <- w - lr sign(g): steepest descent in l_inf. Its margin is the one of min ||w||_inf.

    A gradient entry of zero moves nothing. The sign jumps where an entry passes zero, so w wobbles by about lr around
    its course and directions settle at small rates only. Measured on attention (n=6, T=8, d=10, unit tokens, 3,000
    steps, 3 seeds): relative margin .98 to .996 at lr .1, but .52 to .77 at lr 1.

    Args:
        params: parameters or groups.
        lr: how far every entry moves.

    Raises:
        InputError: lr is not positive.

    Source: Gunasekar, Lee, Soudry, Srebro, "Characterizing implicit bias in terms of optimization geometry" (ICML
    2018): on separable data, linear models trained by steepest descent in a norm converge to the margin of that norm.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(3))
        >>> w.grad = torch.tensor([3e-30, -4.0, 0.0])
        >>> SignDescent([w], lr=0.5).step()
        >>> w.tolist()
        [-0.5, 0.5, 0.0]
    """

    margin_norm = "linf"

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, lr)

    def update(self, loss: Tensor | None) -> None:
        for group, w, g in self.moving():
            w.sub_(g.sign(), alpha=group["lr"])


class Signum(MarginOptimizer):
    """m <- beta m + (1 - beta) g / max|g|, w <- w - lr sign(m): sign descent on an exponential average.

    The gradient is divided by its largest entry because only its direction counts here: an average of gradients that
    shrink would be one of the oldest, and below 1e-38 nothing at all in float32.

    Args:
        params: parameters or groups.
        lr: how far every entry moves.
        momentum: beta, the share of the average that stays; 0 is :class:`SignDescent`.

    Raises:
        InputError: lr is not positive, or momentum is not in [0, 1).

    Source: Bernstein, Wang, Azizzadenesheli, Anandkumar, "signSGD" (ICML 2018), who name the momentum variant Signum.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = Signum([w], lr=1.0, momentum=0.75)
        >>> for g in (-1.0, 1.0, -1.0):  # the averages are -.25, .0625, -.203125
        ...     w.grad = torch.tensor([g])
        ...     optimizer.step()
        >>> w.item()
        1.0
    """

    margin_norm = "linf"

    def __init__(self, params: Any, lr: float = 0.01, momentum: float = 0.9) -> None:
        if not 0 <= momentum < 1:
            raise InputError(f"Signum: momentum is {momentum}; a number from 0 to below 1 is asked")
        super().__init__(params, lr, momentum=momentum)

    def update(self, loss: Tensor | None) -> None:
        for group, w, g in self.moving():
            state = self.state[w]
            if not state:
                state["average"] = torch.zeros_like(w)
            state["average"].mul_(group["momentum"]).add_(scaled(g), alpha=1 - group["momentum"])
            w.sub_(state["average"].sign(), alpha=group["lr"])


class SpectralDescent(MarginOptimizer):
    """W <- W - lr U V' with the gradient G = U S V': steepest descent in the spectral norm (of Muon, without momentum).

    Only singular values above rounding count, so a gradient of rank r moves r directions. A vector is one column, whose
    spectral norm is its length: it is normalised. A tensor of more dimensions is the matrix of its first against all
    others.

    Args:
        params: parameters or groups.
        lr: the spectral norm of every step.
        method: ``svd`` (exact) or ``newton_schulz`` (matrix products only, see :func:`newton_schulz`).
        steps: of Newton-Schulz.

    Raises:
        InputError: lr is not positive, method is neither, or steps is below 1.

    Source: Carlson, Cevher, Carin, "Stochastic spectral descent for restricted Boltzmann machines" (AISTATS 2015);
    its margin is the one of the spectral norm as for every steepest descent (see :class:`SignDescent`).

    Example:
        >>> W = torch.nn.Parameter(torch.zeros(2, 2))
        >>> W.grad = torch.tensor([[0.0, -3.0], [1e-3, 0.0]])
        >>> SpectralDescent([W], lr=0.5).step()
        >>> (W.detach() + 0.0).tolist()
        [[0.0, 0.5], [-0.5, 0.0]]
    """

    margin_norm = "spectral"

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        method: Literal["svd", "newton_schulz"] = "svd",
        steps: int = 20,
    ) -> None:
        if method not in ("svd", "newton_schulz"):
            raise InputError(f"SpectralDescent: method is {method!r}; svd or newton_schulz is asked")
        if steps < 1:
            raise InputError(f"SpectralDescent: steps is {steps}; a positive number is asked")
        self.method, self.steps = method, steps
        super().__init__(params, lr)

    def update(self, loss: Tensor | None) -> None:
        for group, w, g in self.moving():
            if g.ndim < 2:
                step = unit(g)
            else:
                matrix = g.flatten(1)
                step = polar_factor(matrix) if self.method == "svd" else newton_schulz(matrix, self.steps)
            w.sub_(step.view_as(w), alpha=group["lr"])


def polar_factor(G: Tensor) -> Tensor:
    """U V' of the thin singular value decomposition of G, over the singular values above rounding.

    Args:
        G: (m, n), of any rank and scale; zeros give zeros.

    Example:
        >>> polar_factor(torch.tensor([[2.0, 0.0], [0.0, 0.0]])).tolist()
        [[1.0, 0.0], [0.0, 0.0]]
    """
    U, s, Vh = torch.linalg.svd(scaled(G), full_matrices=False)
    # The backward error of an SVD: smaller singular values, and their vectors, are rounding.
    above = s > s[0] * max(G.shape) * torch.finfo(G.dtype).eps
    return (U * above) @ Vh


def newton_schulz(G: Tensor, steps: int = 20) -> Tensor:
    """X <- (15 X - 10 X X'X + 3 X X'X X'X) / 8 from G / ||G||_F: singular values in (0, 1] go to 1, to third order.

    A small one grows by 15/8 a step: after ``steps`` those above (8/15)^steps ||G||_F are at 1, those far below are as
    good as zero. 20 steps reach 3e-6 of ||G||_F; in float32 more would raise rounding (6e-8) to a direction.

    Args:
        G: (m, n), of any scale; zeros give zeros.
        steps: at least 1.

    Source: Higham, "Functions of matrices" (2008), the Pade family for the polar factor; unlike Muon's five
    quintic steps this one converges.

    Example:
        >>> newton_schulz(torch.tensor([[0.0, -3.0], [0.01, 0.0]])).round(decimals=4).abs().tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    X = unit(G)
    wide = X.shape[0] < X.shape[1]
    X = X.mT if wide else X
    for _ in range(steps):
        A = X.mT @ X
        X = (15 * X - 10 * X @ A + 3 * X @ (A @ A)) / 8
    return X.mT if wide else X
