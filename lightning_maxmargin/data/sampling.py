"""Batches as a function of (seed, epoch, step, rank) alone, so that an interrupted run resumes bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch import distributed as dist

from lightning_maxmargin.core import Sequences
from lightning_maxmargin.core.ahead import by_thread
from lightning_maxmargin.data.ahead import Workers
from lightning_maxmargin.data.buffers import Buffers
from lightning_maxmargin.errors import InputError


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


@dataclass(frozen=True)
class Reading:
    """How batches are made ahead of their use; none of it changes a batch or their order.

    Attributes:
        num_workers: processes that make them; 0 leaves it to a thread of this one.
        prefetch: batches ahead; 0 without workers makes each when it is asked for.
        pin_memory: in page-locked memory, which a GPU copies from while training goes on.
        dtype: that floating numbers of a batch are converted to; as they are where None.

    Raises:
        InputError: a number is negative, or workers have nothing to do ahead.

    Example:
        >>> Reading(num_workers=2).prefetch
        2
    """

    num_workers: int = 0
    prefetch: int = 2
    pin_memory: bool = False
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        for name in ("num_workers", "prefetch"):
            if getattr(self, name) < 0:
                raise InputError(f"data.{name}: {getattr(self, name)}; expected zero or more")
        if self.num_workers and not self.prefetch:
            raise InputError("data.prefetch: 0 leaves workers nothing to do; give 1 or more, or num_workers 0")


class BatchLoader:
    """This process's part of every batch, in the order of :func:`epoch_order`.

    A batch of ``batch_size`` sequences is shared by all processes: rank r takes every world-size-th of them from r on.
    So the union over ranks is the batch of one process, no sequence is padded or seen twice, and a part may be empty.
    A batch is made while earlier ones are trained on; where to go on counts those that were handed over.

    Args:
        data: all sequences, the same on every process.
        batch_size: sequences per batch over all processes; None takes the whole set as one batch.
        shuffle: a new order every epoch.
        seed: of the order.
        reading: how batches are made.

    Example:
        >>> data = Sequences(torch.zeros(5, 2, 1), torch.ones(5))
        >>> [len(batch) for batch in BatchLoader(data, batch_size=2)]
        [2, 2, 1]
    """

    def __init__(
        self,
        data: Rows,
        batch_size: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        reading: Reading | None = None,
    ) -> None:
        self.data, self.shuffle, self.seed, self.reading = data, shuffle, seed, reading or Reading(prefetch=0)
        self.batch_size = min(batch_size or len(data), len(data))
        self.epoch = 0
        self.batch_sampler = None  # Lightning looks for it on whatever has a sampler
        self._next = 0
        self._resumed = False
        self._whole: tuple[Rows, Any] | None = None
        self._workers: tuple[Rows, Workers] | None = None
        # In training, held by a callback, being made, and its conversion; keys and values of each.
        self._buffers = Buffers(most=2 * (self.reading.prefetch + 4))

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)

    @property
    def sampler(self) -> BatchLoader:
        """Whose ``set_epoch`` Lightning calls; no attribute, so that a loader which is dropped is freed at once."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """The epoch that Lightning counts, and so the order of the batches."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        self._next = self._next if self._resumed else 0
        self._resumed = False
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if len(self) == 1:
            batches: Iterator[Any] = iter([self._all(rank, world)])
        else:
            order = epoch_order(len(self.data), self.seed, self.epoch, self.shuffle)
            batches = self._made([part[rank::world] for part in order.split(self.batch_size)[self._next :]])
        for batch in batches:
            # Counted before the batch is handed over: Lightning stops at len() without exhausting the generator.
            self._next += 1
            yield batch

    def _all(self, rank: int, world: int) -> Any:
        """The full batch: one object for all epochs, which keeps what is known of its keys."""
        source = self.source()
        if self._whole is None or self._whole[0] is not source:
            same = world == 1 and isinstance(source, Sequences)
            self._whole = source, source if same else source[torch.arange(len(source))[rank::world]]
        return self._whole[1]

    def source(self) -> Rows:
        """What gives the batches of this epoch."""
        return self.data

    def _made(self, rows: Sequence[Tensor]) -> Iterator[Any]:
        """The batches of these rows, ahead of their use."""
        how, source = self.reading, self.source()
        if how.num_workers:
            if self._workers is None or self._workers[0] is not source:
                # Theirs are handed over in shared memory, which is no buffer.
                make = partial(_make, source, how.dtype, torch.empty)
                self._workers = source, Workers(make, how.num_workers, how.prefetch, how.pin_memory)
            return self._workers[1](rows)

        def make_here(part: Tensor) -> Any:
            batch = _make(source, how.dtype, self._buffers.empty, part)
            return pinned(batch) if how.pin_memory else batch

        return by_thread(make_here, rows, how.prefetch) if how.prefetch else map(make_here, rows)

    def state_dict(self) -> dict[str, int]:
        """Where to go on; 0 after the last batch, when the next epoch starts afresh."""
        return {"next": self._next % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._next, self._resumed = state["next"], True


def _make(source: Rows, dtype: torch.dtype | None, empty: Callable[..., Tensor], rows: Tensor) -> Any:
    """A batch as it is trained on."""
    if not isinstance(source, Sequences):
        return source[rows]
    batch = source.take(rows, dtype, empty)
    if source.knows_copies:
        # Near keys may be equal in another dtype: looked up here again, and not while training waits.
        batch.copies()
    return batch


def pinned(batch: Any) -> Any:
    """A batch in page-locked memory, if it is a dictionary of tensors or can be told to."""
    if isinstance(batch, dict):
        return {name: x.pin_memory() for name, x in batch.items()}
    return batch.pin_memory() if hasattr(batch, "pin_memory") else batch
