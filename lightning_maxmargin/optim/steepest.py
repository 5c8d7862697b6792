"""Steepest descent in the l_inf and the spectral norm: every step has length lr in that norm."""

from __future__ import annotations

from typing import Any, Literal

from lightning_maxmargin.core import updates
from lightning_maxmargin.core.norms import newton_schulz as newton_schulz
from lightning_maxmargin.core.norms import polar_factor as polar_factor
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.optim.base import MarginOptimizer


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
        >>> import torch
        >>> w = torch.nn.Parameter(torch.zeros(3))
        >>> w.grad = torch.tensor([3e-30, -4.0, 0.0])
        >>> SignDescent([w], lr=0.5).step()
        >>> w.tolist()
        [-0.5, 0.5, 0.0]
    """

    margin_norm = "linf"

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, lr)

    def rule(self, group: dict[str, Any]) -> updates.UpdateRule:
        return updates.Sign()


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
        >>> import torch
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
            raise InputError(f"Signum: momentum is {momentum}; expected a number from 0 to below 1")
        super().__init__(params, lr, momentum=momentum)

    def rule(self, group: dict[str, Any]) -> updates.UpdateRule:
        return updates.Signum(group["momentum"])


class SpectralDescent(MarginOptimizer):
    """W <- W - lr U V' with the gradient G = U S V': steepest descent in the spectral norm (of Muon, without momentum).

    Only singular values above rounding count, so a gradient of rank r moves r directions. A vector is one column, whose
    spectral norm is its length: it is normalised. A tensor of more dimensions is the matrix of its first against all
    others.

    Args:
        params: parameters or groups.
        lr: the spectral norm of every step.
        method: ``svd`` (exact) or ``newton_schulz`` (matrix products only, see ``newton_schulz``).
        steps: of Newton-Schulz.

    Raises:
        InputError: lr is not positive, method is neither, or steps is below 1.

    Source: Carlson, Cevher, Carin, "Stochastic spectral descent for restricted Boltzmann machines" (AISTATS 2015);
    its margin is the one of the spectral norm as for every steepest descent (see :class:`SignDescent`).

    Example:
        >>> import torch
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
            raise InputError(f"SpectralDescent: method is {method!r}; expected svd or newton_schulz")
        if steps < 1:
            raise InputError(f"SpectralDescent: steps is {steps}; expected a positive number")
        self.method: Literal["svd", "newton_schulz"] = method
        self.steps = steps
        super().__init__(params, lr)

    def rule(self, group: dict[str, Any]) -> updates.UpdateRule:
        return updates.Spectral(self.method, self.steps)
