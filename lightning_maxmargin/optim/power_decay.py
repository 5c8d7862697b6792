"""Rates that decay as a power of the step: what the theorems on momentum ask for."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_maxmargin.errors import InputError


def power_decay(step: int, power: float, scale: float = 1.0) -> float:
    """(1 + step / scale)^-power.

    Example:
        >>> power_decay(30, 0.5, scale=10)
        0.5
    """
    return float((1 + step / scale) ** -power)


class PowerDecay(LRScheduler):
    """lr_t = lr (1 + t / scale)^-power after t steps, of every group from its own lr.

    Momentum follows the gradient of the moment where the rate decays to 0, and W goes on growing where the rates sum to
    infinity: then Signum and Adam reach the l_inf margin, Muon the spectral one. Both hold for a power above 0 and at
    most 1. Stepped after every optimisation step, as ``lr_scheduler`` of every module is.

    Args:
        optimizer: whose rates they are.
        power: a; 0 leaves the rate as it is.
        scale: steps after which the decay sets in.
        last_epoch: steps taken before, -1 for none.

    Raises:
        InputError: a power outside [0, 1], or a scale that is not positive.

    Source: "The Implicit Bias of Adam and Muon on Smooth Homogeneous Neural Networks" (arXiv 2602.16340), learning rate
    schedules.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> schedule = PowerDecay(optimizer, power=1.0)
        >>> for _ in range(4):
        ...     optimizer.step()
        ...     schedule.step()
        >>> optimizer.param_groups[0]["lr"]
        0.1
    """

    def __init__(self, optimizer: Optimizer, power: float = 0.5, scale: float = 1.0, last_epoch: int = -1) -> None:
        if not 0 <= power <= 1:
            raise InputError(f"PowerDecay: power is {power}; expected a number from 0 to 1, so that the rates sum up")
        if not scale > 0:
            raise InputError(f"PowerDecay: scale is {scale}; expected a positive number of steps")
        self.power, self.scale = power, scale
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The rates from now on, (g,) of g groups."""
        factor = power_decay(self.last_epoch, self.power, self.scale)
        return [lr * factor for lr in self.base_lrs]
