"""Sums and maxima over the processes of a run."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch import distributed as dist


class AllReduce:
    """Maximum and sum over the processes of a run; nothing to do for one."""

    def __init__(self, world_size: int) -> None:
        self.many = world_size > 1

    def max(self, x: Tensor) -> Tensor:
        return self._reduce(x, dist.ReduceOp.MAX)

    def sum(self, x: Tensor) -> Tensor:
        return self._reduce(x, dist.ReduceOp.SUM)

    def _reduce(self, x: Tensor, operation: Any) -> Tensor:
        if self.many:
            x = x.clone()
            dist.all_reduce(x, op=operation)
        return x
