"""The sequences of a process, a block at a time, and what all processes' come to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_maxmargin.core import Sequences
from lightning_maxmargin.core.ranks import Alone, Ranks

#: Numbers of the keys up to which one process by itself keeps them in float64: 1 GB.
NUMBERS_IN_MEMORY = 128_000_000
#: Up to so many one that has them in another dtype makes a copy: of 500 sequences of 128 x 384 in float16 the copy and
#: an evaluation took 1.4 s and blocks .95, of 1,536,000 numbers .2 and .4.
NUMBERS_TO_COPY = 20_000_000
#: Numbers of the keys in a block of those that stay where they are, as they are: 40 MB in float64. Below 32 MiB glibc
#: takes them from its heap, which pieces that are kept cut up: 7.3 GiB instead of 1.1 for keys of 6 GB.
NUMBERS_IN_BLOCK = 5_000_000


class Parts:
    """What a process measures of all sequences: every ``ranks.size``-th from its rank on, as in training.

    Args:
        data: all sequences; only those of this process are read.
        ranks: who measures; this process alone where None.
        whole: whether all must be in memory, in float64.
        once: whether they are read once: then no copy of keys in another dtype is worth its time (.14 s of 3,000
            sequences of 8 x 384, whose pass takes .02).

    Attributes:
        data: those of this process: in float64 on the CPU where there are few, else as they are, mapped or on a device.
        in_memory: which of the two.
        index: their numbers among all.

    Example:
        >>> parts = Parts(Sequences(torch.ones(5, 2, 1), torch.ones(5)))
        >>> [len(block) for block in parts.blocks()]
        [5]
    """

    def __init__(self, data: Sequences, ranks: Ranks | None = None, whole: bool = False, once: bool = False) -> None:
        self.ranks, self.count = ranks or Alone(), len(data)
        self.index = range(self.ranks.rank, self.count, self.ranks.size)
        mine = data if self.ranks.size == 1 else data[self.rows]
        is_there = data.keys.dtype == torch.float64 and data.keys.device.type == "cpu"
        most = NUMBERS_IN_MEMORY if is_there else 0 if once else min(NUMBERS_IN_MEMORY, NUMBERS_TO_COPY)
        most = most if self.ranks.size == 1 else NUMBERS_IN_BLOCK
        # By the largest share, so that all processes do the same.
        self.in_memory = whole or -(-self.count // self.ranks.size) * data.keys[0].numel() <= most
        self.data = mine.map(_double) if self.in_memory else mine

    @property
    def rows(self) -> slice:
        """Which of all sequences."""
        return slice(self.ranks.rank, None, self.ranks.size)

    @property
    def mask(self) -> Tensor | None:
        return None if self.data.mask is None else self.data.mask.cpu()

    @property
    def labels(self) -> Tensor:
        return self.data.labels.cpu()

    def blocks(self) -> Iterator[Sequences]:
        """All of this process, in float64 on the CPU; one without sequences where there are none.

        Keys and values of one that is not in memory are there until the next one is asked for.
        """
        from lightning_maxmargin.svm.doubles import Room

        if self.in_memory:
            yield self.data
            return
        rooms = {"keys": Room(), "values": Room()}
        for part in self.as_they_are():

            def double(t: Tensor, part: Sequences = part) -> Tensor:
                name = "keys" if t is part.keys else "values" if t is part.values else None
                return _double(t) if name is None else torch.from_numpy(rooms[name].doubles(t))

            yield part.map(double)

    def as_they_are(self) -> Iterator[Sequences]:
        """The same blocks, wherever they lie and in their own dtype."""
        n, T, d = self.data.keys.shape
        step = max(1, NUMBERS_IN_BLOCK // (T * d))
        for at in range(0, max(n, 1), step):
            yield self.data[at : at + step]


def _double(t: Tensor) -> Tensor:
    """On the CPU, in float64 where it has fractions."""
    from lightning_maxmargin.svm.doubles import to_double

    return to_double(t) if t.is_floating_point() else t.cpu()


@dataclass
class Tally:
    """Of so many sequences: sums, smallest numbers (inf where there is none), and numbers of each.

    Example:
        >>> both = Tally.joined([Tally(2, {"mass": 1.5}, {"row": 0.1}), Tally(1, {"mass": 0.9}, {"row": -0.2})])
        >>> round(both.mean("mass"), 6), both.least["row"]
        (0.8, -0.2)
    """

    count: int
    sums: dict[str, float] = field(default_factory=dict)
    least: dict[str, float] = field(default_factory=dict)
    every: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def joined(parts: Iterable[Tally]) -> Tally:
        """Of all together."""
        found = list(parts)
        return Tally(
            sum(part.count for part in found),
            {name: sum(part.sums[name] for part in found) for name in found[0].sums},
            {name: min(part.least[name] for part in found) for name in found[0].least},
            {name: torch.cat([part.every[name] for part in found]) for name in found[0].every},
        )

    def add(self, **numbers: Tensor) -> None:
        """Sums (count,) numbers or truths."""
        self.sums |= {name: float(x.double().sum()) for name, x in numbers.items()}

    def lower(self, **numbers: Tensor) -> None:
        """Takes in the smallest of each."""
        self.least |= {name: float(x.min()) if x.numel() else float("inf") for name, x in numbers.items()}

    def mean(self, name: str) -> float:
        return self.sums[name] / self.count
