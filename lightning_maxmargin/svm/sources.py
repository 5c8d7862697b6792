"""Keys that do not fit in memory or lie in several places: blocks of sequences, read once for each evaluation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.certificate import TOLERANCES
from lightning_maxmargin.svm.certify import sharp_smallest
from lightning_maxmargin.svm.doubles import Block
from lightning_maxmargin.svm.generate import worst_rows
from lightning_maxmargin.svm.rows import Array, Index, RowProblem

# A block of a memory-mapped array, in numbers: 40 MB of float64. Above 32 MiB glibc gives memory back as soon as it is
# free; below, what is kept of each block lies between the blocks' own and the heap grows, by 1.5 GB for keys of 1 GB.
NUMBERS = 5_000_000
# What a summary holds of each row, besides its query.
BY_ROW = ("delta", "rhs", "depth", "ids", "rounded")


class Source(Protocol):
    """Keys in blocks of consecutive sequences.

    Example:
        >>> import numpy as np
        >>> [(start, block.shape) for start, block in as_source([np.zeros((2, 3, 4)), np.zeros((1, 3, 4))]).blocks()]
        [(0, (2, 3, 4)), (2, (1, 3, 4))]
    """

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """(first sequence, keys (m, T, d)) until every sequence was seen once; called once for each evaluation."""
        ...


Blocks = Source | Sequence[Block] | Callable[[], Iterable[Block]]


@dataclass(frozen=True)
class MappedSource:
    """An array (n, T, d) read in slices, such as ``numpy.memmap`` gives; any float dtype."""

    array: Any
    numbers: int = NUMBERS
    never_changes: ClassVar[bool] = True

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """Slices of about ``numbers`` entries."""
        n, T, d = self.array.shape
        step = max(1, self.numbers // max(T * d, 1))
        for start in range(0, n, step):
            yield start, self.array[start : start + step]


class WrittenSource:
    """Blocks (m, T, d) kept in a temporary file, in their own dtype: what is dear to make is made once.

    Args: folder of the file, which is there; the system's for temporary files where None or not to be written to.
    Raises: OSError where there is no space for it.

    Example:
        >>> source = WrittenSource()
        >>> source.write(np.ones((2, 3, 4), np.float32))
        >>> [(start, block.sum()) for start, block in source.blocks()]
        [(0, np.float32(24.0))]
    """

    never_changes: ClassVar[bool] = True

    def __init__(self, folder: Path | None = None) -> None:
        writable = folder is not None and os.access(folder, os.W_OK)
        # Lives as long as the source, and nobody else sees it.
        self._file = TemporaryFile(dir=folder if writable else None)  # noqa: SIM115
        self._kinds: list[tuple[tuple[int, ...], np.dtype[Any]]] = []

    def write(self, block: npt.NDArray[Any]) -> None:
        """Adds a block at the end."""
        self._file.seek(0, 2)
        self._file.write(block.tobytes())
        self._kinds.append((block.shape, block.dtype))

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """The blocks in the order in which they were written, each until the next one is asked for.

        Read, not mapped, so that none stays in memory, and into the same pages, which cost as much as reading.
        """
        start, place = 0, 0
        sizes = [int(np.prod(shape)) * dtype.itemsize for shape, dtype in self._kinds]
        room = np.empty(max(sizes, default=0), np.uint8)
        for (shape, dtype), size in zip(self._kinds, sizes, strict=True):
            self._file.seek(place)
            self._file.readinto(room[:size].data)
            block = room[:size].view(dtype).reshape(shape)
            yield start, block
            start, place = start + shape[0], place + block.nbytes


@dataclass(frozen=True)
class ListedSource:
    """Blocks (m, T, d) that are in memory, of T's and dtypes of their own."""

    listed: Sequence[Block]
    never_changes: ClassVar[bool] = True

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """The blocks one after the other, numbered."""
        return _numbered(self.listed)


@dataclass(frozen=True)
class MadeSource:
    """Blocks (m, T, d) made anew for each evaluation by ``make()``."""

    make: Callable[[], Iterable[Block]]

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """The blocks one after the other, numbered."""
        return _numbered(self.make())


def _numbered(blocks: Iterable[Block]) -> Iterator[tuple[int, Block]]:
    start = 0
    for block in blocks:
        if np.ndim(block) != 3:
            raise InputError(f"block at sequence {start} has shape {list(np.shape(block))}: yield (m, T, d)")
        yield start, block
        start += len(block)


def as_source(keys: Any) -> Source | None:
    """A Source for a memory-mapped array, a function that returns blocks, or a list of blocks; None for other keys.

    Raises: InputError for an iterator, which could be read only once.
    """
    # First of all, and not by isinstance of a protocol, which takes as long as a small solve.
    if isinstance(keys, Tensor):
        return None
    if hasattr(keys, "blocks"):
        return cast(Source, keys)
    if isinstance(keys, np.memmap):
        if keys.ndim != 3:
            raise InputError(f"keys have shape {list(keys.shape)}: pass (sequences, tokens, features)")
        return MappedSource(keys)
    if isinstance(keys, Iterator):
        raise InputError("keys are an iterator, which is read only once: pass the function that makes it")
    if callable(keys):
        return MadeSource(keys)
    if (
        isinstance(keys, list | tuple)
        and keys
        and all(isinstance(x, Tensor | np.ndarray) and x.ndim == 3 for x in keys)
    ):
        return ListedSource(keys)
    return None


@dataclass(frozen=True)
class ShardSummary:
    """What one shard tells of its rows: its worst ones and numbers, never its keys.

    delta (m, d), queries (m, dq) or None, rhs, depth (m,) (how far the row falls short, over its norm), ids (m,)
    numbers i * T + t with i counted over all shards; smallest: min row/b over b > 0 (inf without such rows);
    rounded (m,): whether delta, a difference of keys, has lost digits, so that it proves nothing exactly.
    """

    delta: Array
    queries: Array | None
    rhs: Array
    depth: Array
    ids: Index
    smallest: float
    rounded: npt.NDArray[np.bool_]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the direction: (d,) or (d, dq)."""
        d = self.delta.shape[1]
        return (d,) if self.queries is None else (d, self.queries.shape[1])

    def worst(self, k: int) -> ShardSummary:
        """The k rows that fall short most."""
        if len(self.ids) <= k:
            return self
        keep = np.sort(np.argpartition(self.depth, k)[:k])
        return self.only(keep)

    def plus(self, other: ShardSummary) -> ShardSummary:
        """The rows of both."""
        z = None if self.queries is None or other.queries is None else np.concatenate([self.queries, other.queries])
        both = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in BY_ROW}
        return replace(self, queries=z, smallest=min(self.smallest, other.smallest), **both)

    def without(self, ids: Index) -> ShardSummary:
        """The rows that are not among ids."""
        return self.only(np.flatnonzero(~np.isin(self.ids, ids)))

    def only(self, keep: Index) -> ShardSummary:
        """The rows at the given places."""
        z = None if self.queries is None else self.queries[keep]
        return replace(self, queries=z, **{name: getattr(self, name)[keep] for name in BY_ROW})


def merge(reports: Iterable[ShardSummary], k: int) -> ShardSummary:
    """The k worst rows of several shards, taken in one shard after the other: two reports are held at a time."""
    whole: ShardSummary | None = None
    for report in reports:
        whole = (report if whole is None else whole.plus(report)).worst(k)
    assert whole is not None
    return whole


@dataclass(frozen=True)
class LocalShard:
    """Some of the sequences: their problem, the first one's number, and the longest one's tokens (0: those here).

    sequences (m,): their numbers, where they do not follow each other.
    """

    problem: RowProblem
    start: int = 0
    tokens: int = 0
    sequences: Index | None = None

    def places(self, ids: Index) -> Index:
        """Numbers i * T + t among all shards of rows that have the numbers ``ids`` here."""
        i, t = np.divmod(ids, self.problem.live.shape[1])
        i = i + self.start if self.sequences is None else self.sequences[i]
        return np.asarray(i * (self.tokens or self.problem.live.shape[1]) + t)

    def live(self) -> npt.NDArray[np.bool_]:
        """Which rows (m, T) count."""
        return self.problem.live

    def with_rhs(self, by_sequence: Array) -> LocalShard:
        """The same rows with one right-hand side (m,) for each sequence."""
        rhs = np.broadcast_to(by_sequence[:, None], self.problem.live.shape)
        return replace(self, problem=self.problem.with_rhs(rhs))

    def worst_rows(self, direction: Array, k: int, everything: bool = False) -> ShardSummary:
        """The k rows of this part that the direction misses most; with ``everything`` the smallest ones, missed or not.

        direction (d,) or (d, dq).
        """
        return self._worst_rows(direction, self.problem.margins(direction), k, everything)

    def evaluate(self, direction: Array, k: int) -> tuple[ShardSummary, ShardCertificate]:
        """``worst_rows`` and ``final`` of one product with the keys."""
        margins = self.problem.margins(direction)
        return self._worst_rows(direction, margins, k), self._final(direction, margins)

    def _worst_rows(self, direction: Array, margins: Array, k: int, everything: bool = False) -> ShardSummary:
        problem, T = self.problem, self.problem.live.shape[1]
        ids = worst_rows(problem, margins, np.zeros(0, np.int64), np.inf if everything else 0.0, direction)
        on = problem.rhs > 0
        if everything and on.any() and not on.ravel()[ids].any():
            ids = np.union1d(ids, np.flatnonzero(on)[:1])
        b, norms = problem.rhs.ravel()[ids], problem.row_norms.ravel()[ids]
        depth = (margins.ravel()[ids] - b) / np.where(norms > 0, norms, 1e-300)
        smallest = float((margins[on] / problem.rhs[on]).min()) if on.any() else np.inf
        z = None if problem.queries is None else problem.queries[ids // T]
        rounded = _rounded(problem, ids)
        return ShardSummary(problem.differences(ids), z, b, depth, self.places(ids), smallest, rounded).worst(k)

    def mean_row(self) -> Array:
        """The sum over sequences of their mean row, of the direction's shape."""
        return self.problem.mean_row()

    def final(self, direction: Array) -> ShardCertificate:
        """The numbers of ``certify`` for the rows of this part."""
        return self._final(direction, self.problem.margins(direction))

    def _final(self, direction: Array, margins: Array) -> ShardCertificate:
        problem, on = self.problem, self.problem.positive
        length = float(np.linalg.norm(direction))
        ratio = np.divide(margins, problem.rhs, out=np.full(on.shape, np.inf), where=on)
        least, smallest = float(ratio.min(initial=np.inf)), np.inf
        if on.any():
            smallest = sharp_smallest(problem, direction, margins) if direction.any() else 0.0
        size = problem.row_norms * length
        zero = problem.live & ~on
        missed = np.divide(-margins, size, out=np.zeros_like(size), where=zero & (size > 0))
        tight = zero & (margins <= TOLERANCES.tight * size)
        ratio[tight] = -np.inf
        if 0 < least < np.inf:
            tight |= on & (ratio <= (1 + TOLERANCES.tight) * least)
        ids = np.flatnonzero(tight)
        pairs = np.column_stack(np.divmod(self.places(ids), self.tokens or problem.live.shape[1]))
        violation, live = float(missed.max(initial=0.0)), bool(problem.live.any())
        return ShardCertificate(pairs, ratio.ravel()[ids], smallest, violation, problem.merged, live)


class PairShard(LocalShard):
    """Single rows: sequence i of the problem is one, its selected token and another; ``sequences`` are its numbers."""

    def places(self, ids: Index) -> Index:
        assert self.sequences is not None
        return np.asarray(self.sequences[ids // 2])


def _rounded(problem: RowProblem, ids: Index) -> npt.NDArray[np.bool_]:
    """Whether k_alpha - k_t was rounded (Knuth's error of a sum): (m,)."""
    i, t = np.divmod(ids, problem.keys.shape[1])
    a, b = (x.astype(np.float64) for x in (problem.keys[i, problem.selected[i]], problem.keys[i, t]))
    d = a - b
    back = a - d
    return np.asarray(((a - (d + back)) + (back - b)).any(axis=1))


@dataclass(frozen=True)
class ShardCertificate:
    """Of one part, in the direction's own length, which is that of the problem over any number above 0.

    pairs (s, 2): rows that are tight here, ratio (s,) their row/b, -inf where b = 0; smallest: min row/b less its
    rounding; violation, merged; live: whether any row is.
    """

    pairs: Index
    ratio: Array
    smallest: float
    violation: float
    merged: int
    live: bool

    @staticmethod
    def joined(parts: Iterable[ShardCertificate]) -> ShardCertificate:
        """Of all parts together."""
        whole = ShardCertificate(np.zeros((0, 2), np.int64), np.zeros(0), np.inf, 0.0, 0, False)
        pairs, ratios = [whole.pairs], [whole.ratio]
        for part in parts:
            pairs.append(part.pairs)
            ratios.append(part.ratio)
            smallest, violation = min(whole.smallest, part.smallest), max(whole.violation, part.violation)
            whole = replace(
                whole, smallest=smallest, violation=violation, merged=whole.merged + part.merged,
                live=whole.live or part.live,
            )  # fmt: skip
        return replace(whole, pairs=np.concatenate(pairs), ratio=np.concatenate(ratios))

    @property
    def tight(self) -> Index:
        """Rows (s, 2) that are tight among all of these, in the order of their numbers."""
        asked = self.ratio[np.isfinite(self.ratio)]
        pairs = self.pairs[self.ratio <= (1 + TOLERANCES.tight) * asked.min(initial=np.inf)]
        return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def joined(parts: Iterable[tuple[ShardSummary, ShardCertificate]], k: int) -> tuple[ShardSummary, ShardCertificate]:
    """The k worst rows and the certificate of several shards, one after the other."""
    certificates: list[ShardCertificate] = []

    def worst_rows() -> Iterator[ShardSummary]:
        for worst, certificate in parts:
            certificates.append(certificate)
            yield worst

    return merge(worst_rows(), k), ShardCertificate.joined(certificates)


def longest(mask: Tensor | None, own: int) -> int:
    """Tokens of the longest sequence: the mask's, or those of a block where there is no mask (or none to be used)."""
    return own if mask is None or np.ndim(mask) != 2 else int(mask.shape[1])
