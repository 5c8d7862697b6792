"""What every optimizer of this package states about itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_maxmargin.core.norms import scaled as scaled
from lightning_maxmargin.core.norms import unit as unit
from lightning_maxmargin.core.updates import State, UpdateRule, update_rule
from lightning_maxmargin.errors import InputError


class MarginOptimizer(Optimizer):
    """An optimizer whose iterates converge in direction to a maximum-margin solution.

    Attributes:
        margin_norm: the norm in which that margin is measured: ``l2``, a number p (of lp), ``linf``, ``spectral``,
            ``nuclear`` or one of a user's own (``svm.register_norm``).
        gradient_scale: the scale of the gradient it expects where the exact direction is at hand: ``direction``
            (any positive scale will do; that of :class:`~lightning_maxmargin.core.exact.Directions` is given) or
            ``log_loss`` (the gradient of log L).
        exact_only: whether the scale of an autograd gradient would break it.

    Args:
        params: tensors or groups of them, as of ``torch.optim.Optimizer``.
        lr: the rate, above 0.
        defaults: what else a group has.

    Raises:
        InputError: the subclass gives neither :meth:`rule` nor :meth:`update`, or a rate is not positive.
    """

    margin_norm: str | float = "l2"
    gradient_scale: str = "direction"
    exact_only: ClassVar[bool] = False

    def __init__(self, params: Any, lr: float, **defaults: Any) -> None:
        kind = type(self)
        if kind.rule is MarginOptimizer.rule and kind.update is MarginOptimizer.update:
            raise InputError(f"{kind.__name__} lacks rule(group): return an UpdateRule, or override update(loss)")
        super().__init__(params, {"lr": lr, **defaults})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch, with the rate checked.

        Args:
            param_group: ``params``, and what differs from the defaults.

        Raises:
            InputError: its rate is not positive.
        """
        lr = param_group.get("lr", self.defaults["lr"])
        if not lr > 0:
            raise InputError(f"{type(self).__name__}: lr is {lr}; expected a positive number")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        # torch keeps groups and state alone: a copy would forget the settings that hold for every group.
        settings = {k: v for k, v in vars(self).items() if isinstance(v, str | int | float)}
        return {**super().__getstate__(), **settings}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure`` re-evaluates the loss and returns it.

        Args:
            closure: computes loss and gradients anew.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.update(loss)
        return loss

    def rule(self, group: dict[str, Any]) -> UpdateRule:
        """How the parameters of this group move; a subclass gives this or :meth:`update`.

        Args:
            group: its options.
        """
        raise NotImplementedError

    def update(self, loss: Tensor | None) -> None:
        """Moves every parameter, of any shape (d, ...), by its ``.grad``.

        Args:
            loss: what the closure returned; None without one.
        """
        for group, w, g in self.moving():
            rule, kept = update_rule(self.rule(group), f"{type(self).__name__}.rule:"), self.state[w]
            count = kept.get("step", 0)
            state: State = {k: x for k, x in kept.items() if k != "step"} or rule.start(w)
            new, state = rule.step(w, g, group["lr"], state, count)
            w.copy_(new)
            if state:
                kept.update(state, step=count + 1)

    def moving(self) -> list[tuple[dict[str, Any], Tensor, Tensor]]:
        """(group, parameter, gradient) of every parameter that has one."""
        return [(g, p, p.grad) for g in self.param_groups for p in g["params"] if p.grad is not None]
