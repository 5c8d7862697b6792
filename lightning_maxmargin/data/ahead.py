"""Batches made ahead of their use: by a thread, or by worker processes."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

#: Makes the batch of these rows.
Make = Callable[[Tensor], Any]


def by_thread(make: Make, rows: Sequence[Tensor], prefetch: int) -> Iterator[Any]:
    """``make`` of all rows in their order, up to ``prefetch`` of them ahead, in one thread.

    torch copies without the interpreter's lock, so the training thread goes on meanwhile. An error of ``make`` is
    raised at the batch that it belongs to.

    Example:
        >>> [int(x) for x in by_thread(lambda rows: rows.sum(), [torch.tensor([1, 2]), torch.tensor([3])], prefetch=2)]
        [3, 3]
    """
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(1, "batches") as pool:
        try:
            for part in rows:
                waiting.append(pool.submit(make, part))
                if len(waiting) > prefetch:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # Lightning stops at len() and leaves the generator where it is.
            for later in waiting:
                later.cancel()


class Workers:
    """``make`` of all rows in their order, by processes that stay for the whole run.

    Args:
        make: what they do; they have its data from the start, and memory that is mapped stays so.
        count: of processes.
        prefetch: batches ahead, of all together.
        pin_memory: whether a thread of this process puts them in page-locked memory.
    """

    def __init__(self, make: Make, count: int, prefetch: int, pin_memory: bool = False) -> None:
        self._order = _Order()
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
        return iter(self._loader)


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
