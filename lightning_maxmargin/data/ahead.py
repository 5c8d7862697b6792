"""Batches made ahead of their use by worker processes; by a thread see ``core/ahead.py``."""

from __future__ import annotations

import multiprocessing
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

#: Makes the batch of these rows.
Make = Callable[[Tensor], Any]


class Workers:
    """``make`` of all rows in their order, by processes that stay for the whole run.

    Args:
        make: what they do; they have its data from the start, and memory that is mapped stays so.
        count: of processes.
        prefetch: batches ahead, of all together.
        pin_memory: whether a thread of this process puts them in page-locked memory.
    """

    def __init__(self, make: Make, count: int, prefetch: int, pin_memory: bool = False) -> None:
        self._order, self._ends = _Order(), False
        # Forked, not spawned: a spawned process would be sent a copy of the data.
        fork = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
        self._loader = DataLoader(
            _Made(make),
            batch_size=None,
            sampler=self._order,
            num_workers=count,
            prefetch_factor=max(1, prefetch // count),
            persistent_workers=True,
            pin_memory=pin_memory,
            multiprocessing_context=fork,
            # Of its own: a draw from the global one would make dropout depend on the number of workers.
            generator=torch.Generator(),
        )

    def __call__(self, rows: Sequence[Tensor]) -> Iterator[Any]:
        self._order.rows = rows
        batches = iter(self._loader)
        if not self._ends:
            # Torch's own end comes too late for what the garbage collector finds in a cycle, as a trainer is: by then
            # the threads are gone that would tell the processes, and each of them is waited for 5 s. Held from outside,
            # the queues are no garbage yet when this object is.
            self._ends = True
            weakref.finalize(self, batches._shutdown_workers)  # type: ignore[attr-defined]
        return batches


class _Order:
    """The rows of each batch, set anew every epoch."""

    rows: Sequence[Tensor] = ()

    def __iter__(self) -> Iterator[Any]:
        # An array is sent as its numbers, a tensor as an open file.
        return (part.numpy() for part in self.rows)

    def __len__(self) -> int:
        return len(self.rows)


class _Made(Dataset[Any]):
    """A data set whose index is the rows of a batch."""

    def __init__(self, make: Make) -> None:
        self.make = make

    def __getitem__(self, rows: Any) -> Any:
        return self.make(torch.from_numpy(rows))
