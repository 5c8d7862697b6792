"""Batches as a function of (seed, epoch, step, rank) alone, so that an interrupted run resumes bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch import distributed as dist

from lightning_maxmargin.core import Sequences


def epoch_order(n: int, seed: int, epoch: int, shuffle: bool) -> Tensor:
    """The order of n sequences in this epoch, (n,) int64.

    Example:
        >>> epoch_order(3, seed=0, epoch=5, shuffle=False).tolist()
        [0, 1, 2]
    """
    if not shuffle:
        return torch.arange(n)
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


class Rows(Protocol):
    """A data set that gives the batch of some of its rows, such as :class:`Sequences`."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor) -> Any: ...


class BatchLoader:
    """This process's part of every batch, in the order of :func:`epoch_order`.

    A batch of ``batch_size`` sequences is shared by all processes: rank r takes every world-size-th of them from r on.
    So the union over ranks is the batch of one process, no sequence is padded or seen twice, and a part may be empty.

    Args:
        data: all sequences, the same on every process.
        batch_size: sequences per batch over all processes; None takes the whole set as one batch.
        shuffle: a new order every epoch.
        seed: of the order.

    Example:
        >>> data = Sequences(torch.zeros(5, 2, 1), torch.ones(5))
        >>> [len(batch) for batch in BatchLoader(data, batch_size=2)]
        [2, 2, 1]
    """

    def __init__(self, data: Rows, batch_size: int | None = None, shuffle: bool = False, seed: int = 0) -> None:
        self.data, self.shuffle, self.seed = data, shuffle, seed
        self.batch_size = min(batch_size or len(data), len(data))
        self.epoch = 0
        self.sampler = self  # whose set_epoch Lightning calls
        self.batch_sampler = None  # Lightning looks for it on whatever has a sampler
        self._next = 0
        self._resumed = False
        self._whole: Any = None

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that Lightning counts, and so the order of the batches."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        self._next = self._next if self._resumed else 0
        self._resumed = False
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if len(self) == 1:
            order = torch.arange(len(self.data))
            if self._whole is None:
                # One object for all epochs, which keeps what is known of its keys.
                same = world == 1 and isinstance(self.data, Sequences)
                self._whole = self.data if same else self.data[order[rank::world]]
        else:
            order = epoch_order(len(self.data), self.seed, self.epoch, self.shuffle)
        while self._next < len(self):
            rows = order[self._next * self.batch_size :][: self.batch_size]
            # Counted before the batch is handed over: Lightning stops at len() without exhausting the generator.
            self._next += 1
            yield self.data[rows[rank::world]] if self._whole is None else self._whole

    def state_dict(self) -> dict[str, int]:
        """Where to go on; 0 after the last batch, when the next epoch starts afresh."""
        return {"next": self._next % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._next, self._resumed = state["next"], True
