"""Rows of float32 keys: one float32 product tells which of them matter, and only those are computed in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lightning_maxmargin.svm.checks import check_mask, check_queries, check_rhs, check_selected, check_shape
from lightning_maxmargin.svm.look import Look
from lightning_maxmargin.svm.rows import LARGEST, MERGE, SMALLEST, Array, Index, RowProblem, mean_row
from lightning_maxmargin.svm.sizes import single_differences
from lightning_maxmargin.svm.sources import PairShard, ShardCertificate, ShardSummary, merge

Single = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
# Numbers of float64 rows that are looked at at once: 8 MB.
NUMBERS_AT_ONCE = 1_000_000
# Queries whose lengths are between this and its inverse keep float32's digits in products with keys.
SHORTEST = 2.0**-50


class Reported:
    """What the parts of one pass have reported, so that the next ones need not look at what cannot matter any more.

    limit: of the k smallest depths, the largest, or inf; smallest: min(row w / b).

    Example:
        >>> reported = Reported()
        >>> reported.add(np.array([-1.0, -5.0, -3.0]), smallest=0.5, k=2)
        >>> reported.limit, reported.smallest
        (-3.0, 0.5)
    """

    def __init__(self) -> None:
        self._depths, self.limit, self.smallest = np.zeros(0), np.inf, np.inf

    def add(self, depths: Array, smallest: float, k: int) -> None:
        """Takes in a part's report."""
        both = np.concatenate([self._depths, depths])
        self._depths = both if len(both) <= k else np.partition(both, k - 1)[:k]
        self.limit = float(self._depths.max()) if len(self._depths) == k else np.inf
        self.smallest = min(self.smallest, smallest)


@dataclass(frozen=True)
class SingleShard:
    """Some of the sequences, their keys in float32; a ``Shard``, made by :func:`single_shard`.

    What is reported, and what the certificate is told, is computed in float64 from the very same keys.

    keys (m, T, d), (0, 0, 0) until they are read again; selected (m,); queries (m, dq) or None, their lengths (m,);
    rhs (m, T), None for ones; sizes (m, T) and chosen (m,): ||k_alpha - k_t|| and ||k_alpha||, from above; rows (m, T),
    which count besides the selected tokens', None for all; padding (m, T), None for none; tokens and sequences as of
    ``LocalShard``; reported: by other parts of this pass.
    """

    keys: Any
    selected: Index
    queries: Array | None
    lengths: Array | None
    rhs: Array | None
    sizes: Single
    chosen: Single
    rows: Mask | None
    padding: Mask | None
    merged: int
    start: int
    tokens: int
    sequences: Index | None
    reported: Reported | None = None

    def live(self) -> Mask:
        """Which rows (m, T) count."""
        live = np.ones(self.sizes.shape, bool) if self.rows is None else self.rows.copy()
        live[np.arange(len(live)), self.selected] = False
        return live

    def with_rhs(self, by_sequence: Array) -> SingleShard:
        """The same rows with one right-hand side (m,) for each sequence."""
        rhs = np.broadcast_to(by_sequence[:, None], self.sizes.shape)
        return replace(self, rhs=None if (by_sequence == 1).all() else rhs)

    def mean_row(self) -> Array:
        """The sum over sequences of their mean row, of the direction's shape."""
        keys = self.keys if self.padding is None else np.where(self.padding[:, :, None], np.float32(0), self.keys)
        return mean_row(keys, self.live(), self.selected, self.queries)

    def worst_rows(self, direction: Array, k: int, everything: bool = False) -> ShardSummary:
        """As ``LocalShard.worst_rows``."""
        look = Look.of(self, direction)
        return self._worst_rows(look, look.smallest(), direction, k, everything)

    def evaluate(self, direction: Array, k: int) -> tuple[ShardSummary, ShardCertificate]:
        """``worst_rows`` and ``final`` of one product with the keys."""
        look = Look.of(self, direction)
        smallest = look.smallest()
        parts = self._parts(np.union1d(smallest, look.touched()))
        found = ShardCertificate.joined(part.final(direction) for part in parts)
        found = replace(found, merged=self.merged, live=self._any_row)
        return self._worst_rows(look, smallest, direction, k), found

    def _worst_rows(
        self, look: Look, smallest: Index, direction: Array, k: int, everything: bool = False
    ) -> ShardSummary:
        ids = np.union1d(smallest, look.worst(k, everything))
        if not len(ids):
            none, nothing = np.zeros(0, np.int64), np.zeros(0)
            z = None if self.queries is None else self.queries[:0]
            delta = np.zeros((0, self.keys.shape[2]))
            return ShardSummary(delta, z, nothing, nothing, none, np.inf, np.zeros(0, bool))
        report = merge((part.worst_rows(direction, k, everything) for part in self._parts(ids)), k)
        if self.reported is not None:
            self.reported.add(report.depth, report.smallest, k)
        return report

    def final(self, direction: Array) -> ShardCertificate:
        """As ``LocalShard.final``."""
        if direction.any():
            return self.evaluate(direction, 1)[1]
        asked = self._any_row if self.rhs is None else bool((self.rhs > 0)[self.live()].any())
        nothing = ShardCertificate.joined([])
        return replace(nothing, smallest=0.0 if asked else np.inf, merged=self.merged, live=self._any_row)

    @property
    def _any_row(self) -> bool:
        return self.sizes.shape[1] > 1 if self.rows is None else bool(self.live().any())

    def _parts(self, ids: Index) -> Iterator[PairShard]:
        """The rows of these numbers in float64, not too many at once."""
        T = self.sizes.shape[1]
        step = max(1, NUMBERS_AT_ONCE // (2 * self.keys.shape[2]))
        for part in (ids[at : at + step] for at in range(0, len(ids), step)):
            i, t = np.divmod(part, T)
            pairs = np.stack([self.keys[i, self.selected[i]], self.keys[i, t]], axis=1).astype(np.float64)
            live = np.column_stack([np.zeros(len(part), bool), np.ones(len(part), bool)])
            b = np.column_stack([np.zeros(len(part)), np.ones(len(part)) if self.rhs is None else self.rhs[i, t]])
            z = None if self.queries is None else self.queries[i]
            problem = RowProblem._build(pairs, np.zeros(len(part), np.int64), z, b, live, merge=False)
            there = i + self.start if self.sequences is None else self.sequences[i]
            yield PairShard(problem, 0, self.tokens, np.asarray(there * (self.tokens or T) + t))


def single_shard(
    keys: Any,
    selected: Tensor,
    queries: Tensor | None,
    mask: Tensor | None,
    rhs: Tensor | None,
    place: tuple[int, int, Index | None],
) -> SingleShard | None:
    """The shard of float32 keys (m, T, d), with ``place`` (start, tokens, sequences); else as ``RowProblem.attention``.

    None where float64 is needed: for NaN and Inf, and for sizes whose squares or products leave float32's range.

    Raises: InputError where shapes, indices or other numbers are wrong.
    """
    check_shape(keys)
    there = check_mask(mask, keys)
    alpha, z = check_selected(selected, there), check_queries(queries, len(keys))
    b = check_rhs(rhs, there)
    with np.errstate(over="ignore", invalid="ignore"):
        sizes, chosen = single_differences(keys, alpha)
    padded = not there.all()
    if padded:
        sizes[~there] = 0
    lengths = None if z is None else np.linalg.norm(z, axis=1)
    asked = np.ones(1) if b is None else b[b > 0]
    in_range = np.isfinite(chosen.max()) and np.isfinite(sizes.max()) and ((asked > SMALLEST) & (asked < LARGEST)).all()
    if lengths is not None:
        in_range &= ((lengths == 0) | ((lengths > SHORTEST) & (lengths < 1 / SHORTEST))).all()
    if not in_range:
        return None
    rows, merged = _without_equal(keys, alpha, sizes, chosen, there)
    if b is not None and rows is not None:
        b = np.where(rows, b, 0.0)
    return SingleShard(keys, alpha, z, lengths, b, sizes, chosen, rows, ~there if padded else None, merged, *place)


def _without_equal(keys: Single, alpha: Index, sizes: Single, chosen: Single, there: Mask) -> tuple[Mask | None, int]:
    """Which rows count, None for all (but the selected tokens'), and how many do not because both keys are equal."""
    i, t = np.divmod(np.flatnonzero(sizes <= (np.float32(4 * MERGE) * chosen)[:, None]), sizes.shape[1])
    rival = there[i, t] & (t != alpha[i])
    i, t = i[rival], t[rival]
    other = np.linalg.norm(keys[i, t].astype(np.float64), axis=1)
    exact = np.linalg.norm(np.subtract(keys[i, alpha[i]], keys[i, t], dtype=np.float64), axis=1)
    own = np.linalg.norm(keys[i, alpha[i]].astype(np.float64), axis=1)
    equal = exact <= MERGE * np.maximum(other, own)
    if not equal.any() and there.all():
        return None, 0
    rows = there.copy()
    rows[i[equal], t[equal]] = False
    return rows, int(equal.sum())
