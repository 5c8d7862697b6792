"""Where a number of a tensor may be asked for in the middle of a training step."""

from __future__ import annotations

from torch import Tensor


def answers_at_once(x: Tensor) -> bool:
    """Whether reading a number of this tensor is free, as on a CPU; a GPU first finishes all that is queued.

    A branch on data is then the faster road, and a mask over everything elsewhere; both give the same numbers.

    Example:
        >>> import torch
        >>> answers_at_once(torch.zeros(1))
        True
    """
    return x.device.type == "cpu"
