"""Rows of many small problems at once, and what is computed from them for all instances together.

Notation as in ``rows``, with a leading instance axis. Live rows of an instance stand first and are padded to the
longest instance, so that each one's rows are one contiguous slice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_maxmargin.svm.certificate import is_certified, relative_gap
from lightning_maxmargin.svm.rows import EPS, LARGEST, MERGE, SMALLEST, Array, Index, unit_rounding

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class BatchRows:
    """Explicit differences of B instances, M rows each, zero past ``count``.

    delta (B, M, d), rhs (B, M), ids (B, M) numbers i * T + t, count (B,), row_norms (B, M),
    queries (B, n, dq) or None, grid (n, T), merged (B,). All float64. live (B, M) says which rows count, None where
    all do; uniform: whether all their right-hand sides are 1; extreme (B,): whose sizes float64 cannot square, so that
    nothing here says anything of them.
    """

    delta: Array
    rhs: Array
    ids: Index
    count: Index
    row_norms: Array
    queries: Array | None
    grid: tuple[int, int]
    merged: Index
    live: Mask | None
    uniform: bool
    extreme: Mask

    def unit_rounding(self) -> float:
        """As of one problem: what a margin may have lost, as a share of ||row|| ||W||."""
        terms = self.delta.shape[2] + (0 if self.queries is None else self.queries.shape[2])
        return unit_rounding(terms)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one direction: (d,) or (d, dq)."""
        d = self.delta.shape[2]
        return (d,) if self.queries is None else (d, self.queries.shape[2])

    @property
    def own_queries(self) -> Array | None:
        """The query of each row: (B, M, dq)."""
        if self.queries is None:
            return None
        return np.take_along_axis(self.queries, (self.ids // self.grid[1])[:, :, None], axis=1)

    def spread(self, x: Array) -> Array:
        """Numbers of the rows (B, M), zero on rows that do not count, at their places in (B, n, T)."""
        n, T = self.grid
        out = np.zeros(len(x) * n * T)
        out[(self.ids + np.arange(len(x))[:, None] * (n * T)).ravel()] = x.ravel()
        return out.reshape(-1, n, T)

    def combine(self, lam: Array) -> Array:
        """sum lam * row for lam (B, M): (B, d) or (B, d, dq)."""
        z = self.own_queries
        if z is None:
            return np.matmul(lam[:, None, :], self.delta)[:, 0]
        return np.matmul((self.delta * lam[:, :, None]).transpose(0, 2, 1), z)

    def projected(self, direction: Array) -> Array:
        """p (B, d), or W z of each row (B, M, d)."""
        z = self.own_queries
        return direction if z is None else np.matmul(z, direction.transpose(0, 2, 1))

    def margins(self, p: Array) -> Array:
        """<row, direction> from the differences, for p as ``projected`` gives it: (B, M)."""
        if p.ndim == 2:
            return np.matmul(self.delta, p[:, :, None])[:, :, 0]
        return np.asarray(np.einsum("bmd,bmd->bm", self.delta, p))

    def gram(self) -> Array:
        """Inner products of the rows scaled to unit length, 1 on the diagonal of padding: (B, M, M)."""
        gram = np.matmul(self.delta, self.delta.transpose(0, 2, 1))
        z = self.own_queries
        if z is not None:
            gram *= np.matmul(z, z.transpose(0, 2, 1))
        scale = inverse(self.row_norms)
        gram *= scale[:, :, None] * scale[:, None, :]
        gram[:, np.arange(gram.shape[1]), np.arange(gram.shape[1])] += 1e-14 + (scale == 0)
        return gram


def inverse(x: Array) -> Array:
    """1/x, and 0 where x is 0."""
    return np.divide(1.0, x, out=np.zeros_like(x), where=x > 0)


def gather(
    keys: Array, selected: Index, live: Mask | None, queries: Array | None, rhs: Array | None, merge: bool = True
) -> BatchRows:
    """Rows of B instances from keys (B, n, T, d), selected (B, n), live (B, n, T) true on tokens, rhs (B, n, T).

    Tokens equal to the selected one are merged as in ``RowProblem``. Padding may hold anything.
    """
    B, n, T, d = keys.shape
    chosen = np.take(keys.reshape(-1, d), (np.arange(B * n) * T + selected.ravel()), axis=0).reshape(B, n, d)
    ids, count = _others(selected, T) if live is None else _live_first(_without(live, selected))
    delta, norms = _differences(keys, chosen, ids, count)
    merged = np.zeros(B, np.int64)
    if merge:
        equal = _equal(keys, chosen, ids, norms, count)
        if equal is not None:
            merged = equal.sum(1)
            alive = _without(np.ones((B, n, T), bool) if live is None else live, selected)
            at, m = np.nonzero(equal)
            alive.reshape(B, -1)[at, ids[at, m]] = False
            ids, count = _live_first(alive)
            delta, norms = _differences(keys, chosen, ids, count)
    M = ids.shape[1]
    on = None if (count == M).all() else np.arange(M) < count[:, None]
    b: Array = np.ones((B, M)) if rhs is None else np.take_along_axis(rhs.reshape(B, -1), ids, axis=1)
    b = b if on is None else np.where(on, b, 0.0)
    row_norms, extreme = norms, _extreme(keys, live)
    if queries is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            row_norms = norms * np.take_along_axis(np.linalg.norm(queries, axis=2), ids // T, axis=1)
        extreme |= _extreme(queries[:, :, None], None)
        extreme |= ((row_norms > 0) & ~((row_norms >= SMALLEST) & (row_norms <= LARGEST))).any(axis=1)
    if rhs is not None:
        extreme |= ((b > 0) & ((b < SMALLEST) | (b > LARGEST))).any(axis=1)
    uniform = rhs is None or bool((b == (1.0 if on is None else on)).all())
    return BatchRows(delta, b, ids, count, row_norms, queries, (n, T), merged, on, uniform, extreme)


def _extreme(keys: Array, live: Mask | None) -> Mask:
    """Instances (B,) with a token, not padding, whose square float64 cannot tell."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("bntd,bntd->bnt", keys, keys)
        odd = ~((squares >= SMALLEST**2) & (squares <= LARGEST**2))
    if odd.any():
        odd &= keys.any(axis=3)
    if live is not None:
        odd &= live
    return np.asarray(odd.any(axis=(1, 2)))


def _without(live: Mask, selected: Index) -> Mask:
    """The live tokens without the selected ones: (B, n, T)."""
    alive = live.copy()
    np.put_along_axis(alive, selected[:, :, None], False, axis=2)
    return alive


def _others(selected: Index, T: int) -> tuple[Index, Index]:
    """Row numbers (B, n (T - 1)) of all tokens but the selected one, and how many (B,)."""
    B, n = selected.shape
    t = np.arange(T - 1)
    ids = (t >= selected[:, :, None]) + (np.arange(n)[:, None] * T + t)
    return ids.reshape(B, n * (T - 1)), np.full(B, n * (T - 1))


def _live_first(live: Mask) -> tuple[Index, Index]:
    """Row numbers (B, M) with the live ones first, and how many there are (B,)."""
    flat = live.reshape(len(live), -1)
    count = flat.sum(1)
    return np.argsort(~flat, axis=1, kind="stable")[:, : int(count.max(initial=0))], count


def _differences(keys: Array, chosen: Array, ids: Index, count: Index) -> tuple[Array, Array]:
    """Delta (B, M, d), zero past the count, and its norms (B, M)."""
    B, n, T, d = keys.shape
    M, start = ids.shape[1], np.arange(B)[:, None]
    delta = np.take(keys.reshape(-1, d), (ids + start * (n * T)).ravel(), axis=0)
    if n * (T - 1) == M and (count == M).all():
        delta = delta.reshape(B * n, T - 1, d)
        np.subtract(chosen.reshape(-1, 1, d), delta, out=delta)
    else:
        np.subtract(np.take(chosen.reshape(-1, d), (ids // T + start * n).ravel(), axis=0), delta, out=delta)
    delta = delta.reshape(B, M, d)
    if (count < M).any():
        delta[np.arange(M) >= count[:, None]] = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(np.einsum("bmd,bmd->bm", delta, delta))
    return delta, norms


def _equal(keys: Array, chosen: Array, ids: Index, norms: Array, count: Index) -> Mask | None:
    """Rows whose token equals the selected one: (B, M), None where there are none."""
    B, n, T, d = keys.shape
    with np.errstate(over="ignore", invalid="ignore"):
        own = np.sqrt(np.einsum("bnd,bnd->bn", chosen, chosen))
        # The larger of two norms is at most the selected one's plus that of the difference: most rows are out at once.
        near = norms <= 1.01 * MERGE * own.max(axis=1)[:, None]
    if not near.any():
        return None
    near &= np.arange(norms.shape[1]) < count[:, None]
    b, m = np.nonzero(near)
    other = np.linalg.norm(keys.reshape(B, n * T, d)[b, ids[b, m]], axis=1)
    near[b, m] = norms[b, m] <= MERGE * np.maximum(other, own[b, ids[b, m] // T])
    return near if near.any() else None


@dataclass(frozen=True)
class BatchJudged:
    """Directions and multipliers (B, M) scaled to smallest row 1, their margins and certificates, all (B, ...)."""

    direction: Array
    lam: Array
    margins: Array
    length: Array
    gap: Array
    violation: Array
    tight: Mask
    good: Mask


def judge(rows: BatchRows, direction: Array, lam: Array, tight: float) -> BatchJudged:
    """``certify`` for all instances at once: the same numbers, from explicit differences in float64.

    Instances that are not finite, miss a row or have no row with b > 0 come out with gap 1 and not good.
    """
    with np.errstate(all="ignore"):
        return _judge(rows, direction, lam, tight)


def _judge(rows: BatchRows, direction: Array, lam: Array, tight: float) -> BatchJudged:
    axes, uniform, b = tuple(range(1, direction.ndim)), rows.uniform, rows.rhs
    off = None if uniform and rows.live is None else b <= 0
    margins = rows.margins(rows.projected(direction))
    smallest = _smallest(margins if uniform else margins / b, off)
    scale = np.where((smallest > 0) & np.isfinite(smallest), 1 / smallest, 1.0)
    direction = direction * scale.reshape((-1,) + (1,) * len(axes))
    margins *= scale[:, None]
    lam = lam * scale[:, None]
    length = np.sqrt((direction**2).sum(axis=axes))
    lower = margins - (rows.unit_rounding() * length)[:, None] * rows.row_norms
    smallest = _smallest(lower if uniform else lower / b, off)
    part = lam * inverse(lam.max(axis=1, initial=0.0))[:, None]
    lost = (0.5 * EPS * part.shape[1] + rows.unit_rounding()) * np.einsum("bm,bm->b", part, rows.row_norms)
    combined = np.sqrt((rows.combine(part) ** 2).sum(axis=axes)) + lost
    gap = np.minimum(relative_gap((part if uniform else part * b).sum(1), combined, smallest, length), 1.0)
    violation = np.zeros(len(b))
    if off is not None and not uniform:
        missed = np.where(off, -margins * inverse(rows.row_norms) * inverse(length)[:, None], 0.0)
        violation = np.maximum(missed.max(axis=1, initial=0.0), 0.0)
    clean = (part.min(axis=1, initial=0.0) >= 0) & np.isfinite(scale * part.sum(1)) & np.isfinite(length)
    good = is_certified(gap, violation, clean & ~rows.extreme)
    if off is None:
        touching = margins <= 1 + tight
    else:
        touching = margins - b <= tight * np.where(off, rows.row_norms * length[:, None], b)
        touching &= True if rows.live is None else rows.live
    return BatchJudged(direction, lam, margins, length, gap, violation, touching, good)


def _smallest(x: Array, off: Mask | None) -> Array:
    return (x if off is None else np.where(off, np.inf, x)).min(axis=1, initial=np.inf)
