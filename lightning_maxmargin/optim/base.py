"""What every optimizer of this package states about itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_maxmargin.errors import InputError


def scaled(g: Tensor) -> Tensor:
    """g divided by its largest absolute entry, so that no power of it underflows: 1e-30 squared is zero in float32.

    Args:
        g: of any shape; zeros stay zeros.

    Example:
        >>> scaled(torch.tensor([2e-30, -4e-30])).tolist()
        [0.5, -1.0]
    """
    top = g.abs().max()
    return g / torch.where(top > 0, top, torch.ones_like(top))


def unit(g: Tensor, order: float = 2.0) -> Tensor:
    """g / ||g||, in the l_order norm of its entries (Frobenius for a matrix), at any scale of g.

    Args:
        g: of any shape; zeros stay zeros.
        order: of the norm, at least 1.

    Example:
        >>> [round(x, 4) for x in unit(torch.tensor([3e-30, 4e-30])).tolist()]
        [0.6, 0.8]
    """
    g = scaled(g)
    # At least 1 unless g is zero, because its largest entry is 1 now.
    return g / torch.linalg.vector_norm(g, order).clamp_min(torch.finfo(g.dtype).tiny)


class MarginOptimizer(Optimizer):
    """An optimizer whose iterates converge in direction to a maximum-margin solution.

    Attributes:
        margin_norm: the norm in which that margin is measured: ``l2``, a number p (of lp), ``linf``, ``spectral`` or
            ``nuclear``.
        gradient_scale: the scale of the gradient it asks for where the exact direction is at hand: ``direction``
            (any positive scale will do; weights that sum to 1 are given) or ``log_loss`` (the gradient of log L).
        exact_only: whether the scale of an autograd gradient would break it.
    """

    margin_norm: str | float = "l2"
    gradient_scale: str = "direction"
    exact_only: ClassVar[bool] = False

    def __init__(self, params: Any, lr: float, **defaults: Any) -> None:
        super().__init__(params, {"lr": lr, **defaults})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch, with the rate checked."""
        lr = param_group.get("lr", self.defaults["lr"])
        if not lr > 0:
            raise InputError(f"{type(self).__name__}: lr is {lr}; a positive number is asked")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        # torch keeps groups and state alone: a copy would forget the settings that hold for every group.
        settings = {k: v for k, v in vars(self).items() if isinstance(v, str | int | float)}
        return {**super().__getstate__(), **settings}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure`` re-evaluates the loss and returns it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.update(loss)
        return loss

    def update(self, loss: Tensor | None) -> None:
        """Moves every parameter by its ``.grad``."""
        raise TypeError(f"{type(self).__name__} does not say how it moves")

    def moving(self) -> list[tuple[dict[str, Any], Tensor, Tensor]]:
        """(group, parameter, gradient) of every parameter that has one."""
        return [(g, p, p.grad) for g in self.param_groups for p in g["params"] if p.grad is not None]
