"""Normalised gradient descent, with a constant or a Polyak step."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_maxmargin.core.updates import Normalized, Polyak, UpdateRule
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.optim.base import MarginOptimizer


class NormalizedGD(MarginOptimizer):
    """w <- w - lr g / ||g|| (constant step), or w <- w - lr (L - L*) g / ||g||^2 (Polyak step).

    ``constant`` normalises each tensor by itself (Frobenius norm for matrices): the norm of w grows as lr * steps, so
    directions settle at rate 1/steps instead of 1/log(steps). ``polyak`` takes ||g|| over all tensors together. With
    the exact gradient of log L (``gradient: exact``) its step is lr g / ||g||^2, the Polyak step for L* = 0, and needs
    no loss; with a true gradient, ``step(closure)`` must return L. A zero gradient moves nothing.

    Args:
        params: parameters or groups.
        lr: the length of a constant step, the multiple of a Polyak step (1 is Polyak's).
        step_size: ``constant`` or ``polyak``.
        optimum: L*, the smallest loss; for Polyak steps on a true gradient.
        max_step: the longest Polyak step of all tensors together.

    Raises:
        InputError: lr or max_step is not positive, or step_size is neither.

    Source: MMTS trains with constant steps; arXiv 2402.05738 proves rates of both for attention.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> w.grad = torch.tensor([3.0, 4.0])
        >>> NormalizedGD([w], lr=1.0).step()
        >>> [round(x, 3) for x in w.tolist()]
        [-0.6, -0.8]
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        step_size: Literal["constant", "polyak"] = "constant",
        optimum: float = 0.0,
        max_step: float = 1e3,
    ) -> None:
        if not max_step > 0:
            raise InputError(f"NormalizedGD: max_step is {max_step}; expected a positive number")
        if step_size not in ("constant", "polyak"):
            raise InputError(f"NormalizedGD: step_size is {step_size!r}; expected constant or polyak")
        self.step_size, self.optimum, self.max_step = step_size, optimum, max_step
        self.gradient_scale = "direction" if step_size == "constant" else "log_loss"
        super().__init__(params, lr)

    def rule(self, group: dict[str, Any]) -> UpdateRule:
        return Normalized()

    def update(self, loss: Tensor | None) -> None:
        if self.step_size == "constant":
            return super().update(loss)
        excess = 1.0 if loss is None else torch.as_tensor(loss).detach() - self.optimum
        moving = self.moving()
        weights, gradients = [w for _, w, _ in moving], [g for _, _, g in moving]
        rates = [group["lr"] * excess for group, _, _ in moving]
        found = Polyak(self.max_step).step_all(weights, gradients, rates, [{} for _ in moving], 0)
        for w, (new, _) in zip(weights, found, strict=True):
            w.copy_(new)
