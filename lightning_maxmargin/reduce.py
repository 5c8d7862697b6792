"""Sums and maxima over the processes of a run, and how a process leaves the others."""

from __future__ import annotations

import atexit
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from lightning_maxmargin.core.exact import OneProcess, Reduce
from lightning_maxmargin.core.ranks import Alone, Ranks

T = TypeVar("T")


class AllReduce:
    """Maximum and sum over the processes of a run."""

    def max(self, x: Tensor) -> Tensor:
        return self._reduce(x, dist.ReduceOp.MAX)

    def sum(self, x: Tensor) -> Tensor:
        return self._reduce(x, dist.ReduceOp.SUM)

    def _reduce(self, x: Tensor, operation: Any) -> Tensor:
        x = x.clone()
        dist.all_reduce(x, op=operation)
        return x


def reduce_over(world_size: int) -> Reduce:
    """What reduces over so many processes."""
    return AllReduce() if world_size > 1 else OneProcess()


def number_on(device: torch.device, x: float) -> Tensor:
    """This number on a device, written there: ``torch.tensor`` copies it from the host, which waits for the device."""
    return torch.full((), float(x), device=device)


def measuring_ranks(trainer: Any) -> Ranks:
    """The processes of a trainer in a group of their own, apart from that of the gradients; all of them must ask.

    On the CPU whatever the backend of the gradients, so that a thread may measure while training goes on.
    """
    if trainer.world_size == 1:
        return Alone()
    timeout = getattr(trainer.strategy, "_timeout", None)
    return Ranks(dist.new_group(backend="gloo", timeout=timeout))


def gather(x: T) -> list[T]:
    """What every process has, in the order of their ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return [x]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, x)
    return found


def leave_group_at_exit() -> None:
    """Makes this process leave its Gloo group before the interpreter goes; call it once there is a trainer.

    Gloo's threads hold the tensors of the last reductions. One that wants the interpreter's lock to let go of them
    while the interpreter ends aborts the process ("terminate called without an active exception": 26 of 120 bare
    processes on a busy machine, none of 120 that left first), and Lightning then kills the run, although it was done.
    """
    atexit.unregister(leave_group)
    atexit.register(leave_group)


def leave_group() -> None:
    """Leaves this process's Gloo group, if there is one."""
    # NCCL's end waits for the other processes, which a process that failed would not survive.
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()
