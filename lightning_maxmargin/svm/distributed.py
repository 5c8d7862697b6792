"""One problem whose sequences lie on several processes (torch.distributed): only their worst rows travel.

Every process calls the solver; the first one leads, holds the working rows and judges, the others answer for their own
sequences, and all get its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_maxmargin.core.ranks import Ask, Ranks
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.blocks import BlockShards
from lightning_maxmargin.svm.checks import check_labels, check_values
from lightning_maxmargin.svm.device import shard_on_device
from lightning_maxmargin.svm.doubles import to_array
from lightning_maxmargin.svm.limits import Mask
from lightning_maxmargin.svm.one_joint import margins_of
from lightning_maxmargin.svm.rows import Array, Index, RowProblem
from lightning_maxmargin.svm.solution import Solution
from lightning_maxmargin.svm.sources import (
    NUMBERS,
    LocalShard,
    ShardCertificate,
    ShardSummary,
    Source,
    joined,
    merge,
)

#: Blocks of a process whose mean row the first direction is: of 10,000 documents in a hundred blocks as many rounds
#: follow as after the mean of all, which took a sixth of the solve.
BLOCKS_TO_BEGIN = 4
#: Up to so many numbers in the keys of all processes, 0.8 MB, the first one is handed them and solves the problem in
#: one piece, with all that small problems have: rational arithmetic, any scale, any norm.
NUMBERS_AT_ONCE = 100_000


@dataclass(frozen=True)
class DistributedShard:
    """This process's sequences, in place of the keys of a solver that all processes of a group call together.

    The other arguments of the solver hold this process's sequences as well. Every process gets the same answer, to the
    last bit, or the same error: one line that names the rank it comes from.

    Args:
        keys: (m, T, d), m may be 0; or the values (m, d) of ``solve_label_svm``. A tensor, an array or a
            ``numpy.memmap`` (which stays mapped), blocks as in ``solve_att_svm``. Of a tensor on an accelerator the
            products are computed there, in its dtype, and the rows that matter in float64 on the CPU.
        index: numbers (m,) of these sequences among all, such as ``range(rank, n, world_size)``; None counts them rank
            after rank.
        group: of ``torch.distributed``, the default one where None; alone, where there is none.
        at_once: up to so many numbers of all keys the first process solves the problem in one piece; None is 100,000.
        unchanging: whether the keys stay as they are from one call to the next, on all processes. What is known of them
            is then kept for calls with the same selected tokens, queries and mask: sizes (25 bytes a token), and the
            working rows, at which the next problem begins.

    Example:
        >>> import torch
        >>> from lightning_maxmargin import solve_att_svm
        >>> keys = torch.tensor([[[-0.1, 1.0], [1.0, 0.0], [0.0, 0.0]]])
        >>> solve_att_svm(DistributedShard(keys), torch.tensor([0])).status
        'certified'
    """

    keys: Any
    index: Any = None
    group: Any = None
    at_once: int | None = None
    unchanging: bool = False
    _kept: list[tuple[AttentionPart, tuple[Tensor | None, ...]]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    def part(
        self, source: Callable[[], Source], selected: Tensor, queries: Tensor | None, mask: Tensor | None,
        rhs: Tensor | None, layout: Layout,
    ) -> AttentionPart:  # fmt: skip
        """The attention rows of this process, those of the last call where it was about the same.

        Args:
            source: makes the blocks of keys.
            selected: (m,) token indices.
            queries: (m, dq).
            mask: (m, T).
            rhs: (m, T).
            layout: where all sequences are.
        """
        arguments = (selected, queries, mask, rhs)
        if self.is_known(*arguments) and np.array_equal(self._kept[0][0].sequences, layout.sequences()):
            kept = self._kept[0][0]
            kept.layout, kept.by_sequence = layout, None
            return kept
        found = AttentionPart(source(), *arguments, layout)
        if self.unchanging:
            # Copies, for a tensor may be written to between two calls.
            self._kept[:] = [(found, tuple(None if x is None else x.clone() for x in arguments))]
        return found

    def is_known(
        self, selected: Tensor, queries: Tensor | None, mask: Tensor | None, rhs: Tensor | None
    ) -> bool:  # fmt: skip
        """Whether the last call on unchanging keys had these arguments too.

        Args:
            selected: (m,) token indices.
            queries: (m, dq).
            mask: (m, T).
            rhs: (m, T).
        """
        return bool(self._kept) and all(map(_same, self._kept[0][1], (selected, queries, mask, rhs)))

    def is_small(self, layout: Layout) -> bool:
        """Whether the first process solves the problem in one piece.

        Args:
            layout: where all sequences are.
        """
        return layout.numbers <= (NUMBERS_AT_ONCE if self.at_once is None else self.at_once)

    @cached_property
    def ranks(self) -> Ranks:
        return self.group if isinstance(self.group, Ranks) else Ranks(self.group)


def _same(x: Tensor | None, y: Tensor | None) -> bool:
    return x is y or (x is not None and y is not None and torch.equal(x, y))


@dataclass(frozen=True)
class Facts:
    """What each process tells of its part before any row is looked at; ``alike`` are facts that must be the same.

    in_signs, classes: whether its labels are in {-1, 1}, and the largest one + 1. shape: of the direction. known:
    whether its rows are those of the last call.
    """

    count: int
    tokens: int
    numbers: int
    index: Any
    alike: dict[str, Any]
    shape: tuple[int, ...]
    in_signs: bool = True
    classes: int = 2
    known: bool = False


@dataclass(frozen=True)
class Layout:
    """Where all sequences are: their numbers by rank, how many, the tokens of the longest, and entries of all keys."""

    facts: Sequence[Facts]
    rank: int

    @staticmethod
    def agreed(ranks: Ranks, describe: Callable[[], Facts]) -> Layout:
        """What all processes tell.

        Raises: InputError, on all of them, where they do not hold parts of one problem.
        """
        layout = Layout(ranks.gather(describe), ranks.rank)
        for rank, facts in enumerate(layout.facts):
            for name, value in facts.alike.items():
                first = layout.facts[0].alike[name]
                if value != first:
                    raise InputError(f"rank {rank}: {name} {value}, and on rank 0 {first}: give parts of one problem")
        layout._check_numbers()
        return layout

    @property
    def n(self) -> int:
        return sum(facts.count for facts in self.facts)

    @property
    def tokens(self) -> int:
        return max(facts.tokens for facts in self.facts)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.facts[0].shape

    @property
    def classes(self) -> int | None:
        """Of the labels of all; None where they are -1 and 1."""
        return None if all(x.in_signs for x in self.facts) else max(x.classes for x in self.facts)

    @property
    def known(self) -> bool:
        """Whether all rows are those of the last call."""
        return all(facts.known for facts in self.facts)

    @property
    def grid(self) -> tuple[int, int]:
        return self.n, self.tokens

    @property
    def numbers(self) -> int:
        return sum(facts.numbers for facts in self.facts)

    def sequences(self, rank: int | None = None) -> Index:
        """Numbers (m,) of the sequences of a rank, of this one where None."""
        rank = self.rank if rank is None else rank
        facts = self.facts[rank]
        if facts.index is None:
            return np.arange(facts.count) + sum(other.count for other in self.facts[:rank])
        return np.asarray(facts.index, dtype=np.int64)

    def together(self, parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """What the ranks tell of their sequences (m, ...), in the order of the numbers (n, ...)."""
        whole = np.zeros((self.n, *parts[0].shape[1:]), parts[0].dtype)
        for rank, part in enumerate(parts):
            whole[self.sequences(rank)] = part
        return whole

    def _check_numbers(self) -> None:
        n = self.n
        if n == 0:
            raise InputError("keys hold no sequence on any rank: pass (sequences, tokens, features)")
        if len({facts.index is None for facts in self.facts}) > 1:
            raise InputError("index is given on some ranks and not on others: give all or none")
        seen = np.zeros(n, np.int64)
        for rank, facts in enumerate(self.facts):
            at = self.sequences(rank)
            if at.shape != (facts.count,) or (len(at) and not 0 <= at.min() <= at.max() < n):
                raise InputError(f"rank {rank}: index holds {len(at)} numbers for {facts.count} sequences of {n}")
            np.add.at(seen, at, 1)
            if seen.max() > 1:
                raise InputError(f"rank {rank}: index holds sequence {int(seen.argmax())}, which has been held already")


class RankRows:
    """What one process answers of its own sequences: a :class:`Shard` of shards.

    Args: shape of the direction; sequences, their numbers.
    """

    def __init__(self, shape: tuple[int, ...], sequences: Index) -> None:
        self.shape, self.sequences = shape, sequences

    def shards(self) -> Iterable[Any]:
        """Goes once over them; none where there is no sequence."""
        raise NotImplementedError

    def mean_row(self) -> Array:
        few = islice(self.shards(), BLOCKS_TO_BEGIN)
        return np.asarray(sum((shard.mean_row() for shard in few), np.zeros(self.shape)))

    def worst_rows(self, direction: Array, k: int, everything: bool = False) -> ShardSummary | None:
        """None where there is no sequence."""
        if len(self.sequences) == 0:
            return None
        return merge((shard.worst_rows(direction, k, everything) for shard in self.shards()), k)

    def final(self, direction: Array) -> ShardCertificate:
        return ShardCertificate.joined(shard.final(direction) for shard in self.shards())

    def evaluate(self, direction: Array, k: int) -> tuple[ShardSummary, ShardCertificate] | None:
        """None where there is no sequence."""
        if len(self.sequences) == 0:
            return None
        return joined((shard.evaluate(direction, k) for shard in self.shards()), k)


class AskedRows:
    """The rows of all processes, as the leading one sees them: one :class:`Shard`."""

    def __init__(self, ask: Ask, *which: str) -> None:
        self.ask, self.which = ask, which

    def mean_row(self) -> Array:
        return np.asarray(np.sum(self.ask(*self.which, "mean_row"), axis=0))

    def worst_rows(self, direction: Array, k: int, everything: bool = False) -> ShardSummary:
        return merge((x for x in self.ask(*self.which, "worst_rows", direction, k, everything) if x is not None), k)

    def final(self, direction: Array) -> ShardCertificate:
        return ShardCertificate.joined(self.ask(*self.which, "final", direction))

    def evaluate(self, direction: Array, k: int) -> tuple[ShardSummary, ShardCertificate]:
        return joined((x for x in self.ask(*self.which, "evaluate", direction, k) if x is not None), k)


class AttentionPart(RankRows):
    """The attention rows of one process, in memory, mapped, made anew for each evaluation, or on an accelerator."""

    def __init__(
        self,
        source: Source,
        selected: Tensor,
        queries: Tensor | None,
        mask: Tensor | None,
        rhs: Tensor | None,
        layout: Layout,
    ) -> None:
        super().__init__(layout.shape, layout.sequences())
        self.source, self.layout = source, layout
        self.rest = (selected, queries, mask, rhs)
        #: Rows to begin at, on the process that leads.
        self.working: ShardSummary | None = None
        self.by_sequence: Array | None = None
        self._each: Callable[[], Iterable[Any]] | None = None

    def ask_for(self, by_sequence: Array) -> None:
        """Right-hand sides (n,) by the number of the sequence, from now on."""
        self.by_sequence = by_sequence[self.sequences]

    def live(self) -> Mask:
        """Which rows (m, T) count."""
        live = np.zeros((len(self.sequences), self.layout.tokens), bool)
        for shard in self.shards():
            block = shard.live()
            live[shard.start : shard.start + len(block), : block.shape[1]] = block
        return live

    def piece(self) -> dict[str, Array | None]:
        """All of this part, checked and padded to the longest sequence, for a small problem."""
        selected, queries, mask, rhs = self.rest
        m, T = len(self.sequences), self.layout.tokens
        keys, there = np.zeros((m, T, self.shape[0])), np.zeros((m, T))
        seen = 0
        for start, block in self.source.blocks():
            here = to_array(block, "keys")
            seen = start + len(here)
            if start + len(here) > m or here.shape[1] > T:
                raise InputError(f"keys hold sequences {start} to {seen}, of {m} selected: give each one token")
            keys[start:seen, : here.shape[1]], there[start:seen, : here.shape[1]] = here, 1.0
        if seen != m:
            raise InputError(f"keys hold {seen} sequences and selected {m}: give one selected token each")
        padded = [None if x is None else _padded(to_array(x, name), T) for x, name in ((mask, "mask"), (rhs, "rhs"))]
        there = there if padded[0] is None else padded[0]
        if m:
            RowProblem.attention(keys, selected, queries, there, padded[1])  # type: ignore[arg-type]
        return {
            "keys": keys, "selected": to_array(selected, "selected"), "mask": None if there.all() else there,
            "queries": None if queries is None else to_array(queries, "queries"), "rhs": padded[1],
        }  # fmt: skip

    def shards(self) -> Iterable[Any]:
        if len(self.sequences) == 0:
            return
        self._each = self._each or self._shards_of()
        for shard in self._each():
            b = self.by_sequence
            yield shard if b is None else shard.with_rhs(b[shard.start : shard.start + len(shard.sequences)])

    def _shards_of(self) -> Callable[[], Iterable[Any]]:
        place = (self.source, *self.rest, self.layout.tokens, self.sequences)
        on_device = shard_on_device(*place)
        return BlockShards(*place) if on_device is None else lambda: [on_device]


class LabelPart(RankRows):
    """The label rows of one process.

    Args: x (m, d), of which a block at a time is read; labels (m,); classes of all processes, None for binary labels.
    """

    def __init__(self, x: Any, labels: Tensor, classes: int | None, sequences: Index) -> None:
        d = int(np.shape(x)[1])
        super().__init__((d,) if classes is None else (classes, d), sequences)
        self.x, self.labels, self.classes = x, labels, classes
        # Of one block, which is made once: making it takes longer than looking at it.
        self._only: list[LocalShard] = []

    def piece(self) -> dict[str, Array | None]:
        """All of this part, checked, for a small problem."""
        x = to_array(self.x, "values")
        if len(x):
            check_labels(self.labels, len(check_values(x)), self.classes)
        return {"values": x, "labels": to_array(self.labels, "labels")}

    def margins(self, head: Solution) -> Array | None:
        """As :func:`margins_of`, of this process's samples."""
        return margins_of(head, self.x, self.labels) if len(self.sequences) else np.zeros(0)

    def shards(self) -> Iterable[LocalShard]:
        step = max(1, NUMBERS // self.shape[-1])
        if self._only:
            yield from self._only
            return
        for at in range(0, len(self.sequences), step):
            x, y = self.x[at : at + step], self.labels[at : at + step]
            problem = RowProblem.binary(x, y) if self.classes is None else RowProblem.multiclass(x, y, self.classes)
            if problem.extreme:
                raise InputError(f"values from sample {at}: sizes that float64 cannot square; rescale the values")
            shard = LocalShard(problem, at, 0, self.sequences[at : at + step])
            if step >= len(self.sequences):
                self._only.append(shard)
            yield shard


def _padded(x: Array, tokens: int) -> Array:
    """(m, T) with zeros up to ``tokens``; as it is where it has another shape, which is told later."""
    return np.pad(x, ((0, 0), (0, tokens - x.shape[1]))) if x.ndim == 2 and x.shape[1] < tokens else x
