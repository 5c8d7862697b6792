"""Two optimizers as one: each part of a model has its own, and so its own norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_maxmargin.errors import InputError


class OptimizerPerGroup(Optimizer):
    """Several optimizers that step together, as one with all their groups and states.

    A Trainer counts one step for all of them, a schedule of the rate moves the groups of all, clipping sees all
    gradients, and a checkpoint holds one state. The groups and states are the optimizers' own, not copies.

    Args:
        parts: the optimizers; no parameter may be in two of them.

    Attributes:
        parts: these.

    Raises:
        InputError: there is none.

    Source: hybrid optimizers, Muon for matrices beside sign or Adam steps for the rest (arXiv 2602.16340).

    Example:
        >>> W, v = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2))
        >>> both = OptimizerPerGroup([torch.optim.SGD([W], lr=1.0), torch.optim.SGD([v], lr=0.5)])
        >>> W.grad, v.grad = torch.ones(2, 2), torch.ones(2)
        >>> both.step()
        >>> W[0].tolist(), v.tolist(), [group["lr"] for group in both.param_groups]
        ([-1.0, -1.0], [-0.5, -0.5], [1.0, 0.5])
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        if not parts:
            raise InputError("OptimizerPerGroup: there is no optimizer; pass one or more")
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The parts work on the groups and the state of the whole; loading a state replaces both."""
        at = 0
        for part in self.parts:
            for param, state in part.state.items():
                self.state.setdefault(param, state)
            count = len(part.param_groups)
            part.param_groups, part.state = self.param_groups[at : at + count], self.state
            at += count

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch; the state that the parts had is dropped.

        Args:
            state_dict: as ``state_dict()`` made it.
        """
        super().load_state_dict(state_dict)
        for part in self.parts:
            part.state = self.state
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every part; ``closure`` re-evaluates the loss once, and returns it.

        Args:
            closure: computes loss and gradients anew.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step(None if closure is None else lambda: loss)  # type: ignore[arg-type]
        return loss


def parts_of(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizers that step together in this one: itself, where it is no :class:`OptimizerPerGroup`."""
    return optimizer.parts if isinstance(optimizer, OptimizerPerGroup) else [optimizer]
