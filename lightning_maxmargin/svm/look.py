"""One float32 product of a direction with keys, and which rows it leaves in doubt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lightning_maxmargin.svm.certificate import TOLERANCES
from lightning_maxmargin.svm.rows import BLOCK, EPS, Array, Index

if TYPE_CHECKING:
    from lightning_maxmargin.svm.single import SingleShard

EPS_SINGLE = float(np.finfo(np.float32).eps)
# Of one sequence no more rows are reported, as of keys in memory.
ROWS_OF_A_SEQUENCE = 4
# What a product of two numbers loses where float32 flushes it to zero.
UNDERFLOW = 2.0**-125
LARGEST_SINGLE = float(np.finfo(np.float32).max)
# In place of a size of 0.
TINY = np.float32(1e-30)


@dataclass(frozen=True)
class Look:
    r"""Lower bounds on all margins per ||w||, from float32 products with w/||w||.

    With u half of float32's eps, what such a margin may have lost is at most
    ``u (d + dq + 6) ||z|| (||k_alpha - k_t|| + 2 ||k_alpha||)``: of the products, of the two roundings after them, and
    of w's. A row that is above what is asked by more than this cannot be missed, and no other number of it is needed.

    lower (m, T) float32, inf where no row counts; p: what keys are multiplied with, (d,) or (m, d); length ||w||, 1
    where that is 0; share u (d + dq + 6).
    """

    shard: SingleShard
    lower: npt.NDArray[np.float32]
    p: Array
    length: float
    share: float

    @classmethod
    def of(cls, shard: SingleShard, direction: Array) -> Look:
        keys, (m, T), d = shard.keys, shard.sizes.shape, shard.keys.shape[2]
        length = float(np.linalg.norm(direction)) or 1.0
        unit = direction / length
        share = 0.5 * EPS_SINGLE * (sum(direction.shape) + 6)
        p = unit if shard.queries is None else shard.queries @ unit.T
        z = np.ones(m) if shard.lengths is None else shard.lengths
        by, at = p.astype(np.float32), (np.arange(m), shard.selected)
        with np.errstate(invalid="ignore", over="ignore"):  # of padding, which may hold anything
            scores = keys.reshape(m * T, d) @ by if p.ndim == 1 else np.matmul(keys, by[:, :, None])
            scores = scores.reshape(m, T)
            top = scores[at] - (2 * share * z * shard.chosen + d * UNDERFLOW)
            scores += shard.sizes * np.float32(share) if p.ndim == 1 else shard.sizes * (share * z[:, None])
            lower = np.subtract(top[:, None].astype(np.float32), scores, out=scores)
        lower[at] = np.inf
        if shard.rows is not None:
            lower[~shard.rows] = np.inf
        return cls(shard, lower, p, length, share)

    def smallest(self) -> Index:
        """Rows that may have the smallest margin over what is asked, or be tight, of all parts seen so far."""
        shard = self.shard
        ratio: npt.NDArray[Any]
        if shard.rhs is None:
            ratio = self.lower
        else:
            on = (shard.rhs > 0) & np.isfinite(self.lower)
            ratio = np.divide(self.lower, shard.rhs, out=np.full(on.shape, np.inf), where=on)
        first = np.array([ratio.argmin()])
        least = float(ratio.ravel()[first[0]])
        if not np.isfinite(least) or least > _with_tight(self._known()[1] / self.length):
            return np.zeros(0, np.int64)
        if not self.p.any():
            return first
        near = np.flatnonzero(ratio <= _with_tight(self._at_most(first)))
        return near if len(near) == 1 else near[self._ratio(near, -1.0) <= _with_tight(self._at_most(near))]

    def touched(self) -> Index:
        """Rows with right-hand side 0 that may be missed or tight."""
        shard = self.shard
        if shard.rhs is None:
            return np.zeros(0, np.int64)
        size = shard.sizes if shard.lengths is None else shard.sizes * shard.lengths[:, None]
        return np.flatnonzero((shard.rhs == 0) & (self.lower <= TOLERANCES.tight * size))

    def worst(self, k: int, everything: bool) -> Index:
        """The rows that may be missed (with ``everything`` all) and are no less deep than others have reported."""
        ids, depth = self._all() if everything else self._missed()
        keep = np.flatnonzero(depth <= self._known()[0])
        # Enough that few are short of k when no sequence has more than its share.
        ids, depth = _smallest(ids[keep], depth[keep], 2 * ROWS_OF_A_SEQUENCE * k)
        few = _few_of_each(ids // self.lower.shape[1], depth * self._size(ids))
        return np.sort(_smallest(ids[few], depth[few], k)[0])

    def _all(self) -> tuple[Index, Array]:
        """Rows no less deep than others have reported, and about how deep they are: in float32, as a first choice."""
        z, sizes = self.shard.lengths, self.shard.sizes
        depth = self.lower - self._asked(slice(None))
        with np.errstate(divide="ignore", over="ignore"):
            depth /= np.maximum(sizes if z is None else sizes * z[:, None], TINY)
        depth *= self.length
        ids = np.flatnonzero(depth < min(self._known()[0], LARGEST_SINGLE))
        return ids, depth.ravel()[ids].astype(np.float64)

    def _missed(self) -> tuple[Index, Array]:
        """Rows that may be missed, without those that float64 shows to be met, and how deep they are."""
        ids = np.flatnonzero(self.lower < self._asked(slice(None)))
        lost, asked = self._lost(ids), self._asked(ids)
        margins = self.lower.ravel()[ids] + lost
        doubtful = np.flatnonzero(margins + lost >= asked)
        if len(doubtful):
            margins[doubtful] = self._exact(ids[doubtful])
            keep = np.flatnonzero(margins < asked)
            ids, margins = ids[keep], margins[keep]
        return ids, self._depth(ids, margins)

    def _depth(self, ids: Index, margins: Array) -> Array:
        return np.asarray((margins - self._asked(ids)) * self.length / np.maximum(self._size(ids), 1e-300))

    def _known(self) -> tuple[float, float]:
        """Of the other parts: up to which depth rows are worth reporting, and the smallest row w / b."""
        reported = self.shard.reported
        return (np.inf, np.inf) if reported is None else (reported.limit, reported.smallest)

    def _asked(self, ids: Index | slice) -> Array | float:
        """What a margin per ||w|| has to be."""
        rhs = self.shard.rhs
        if rhs is None:
            return 1 / self.length
        return np.asarray((rhs if isinstance(ids, slice) else rhs.ravel()[ids]) / self.length)

    def _size(self, ids: Index) -> Array:
        z, sizes = self.shard.lengths, self.shard.sizes.ravel()[ids]
        return np.asarray(sizes if z is None else sizes * z[ids // self.lower.shape[1]], np.float64)

    def _lost(self, ids: Index) -> Array:
        """What the float32 margins of rows may have lost."""
        i, z = ids // self.lower.shape[1], self.shard.lengths
        chosen = self.shard.chosen[i] if z is None else self.shard.chosen[i] * z[i]
        return self.share * (self._size(ids) + 2 * chosen)

    def _exact(self, ids: Index) -> Array:
        """Margins per ||w|| of rows in float64, from differences."""
        i, t = np.divmod(ids, self.lower.shape[1])
        keys, out = self.shard.keys, np.empty(len(ids))
        step = max(1, BLOCK // keys.shape[2])
        for part in (slice(at, at + step) for at in range(0, len(ids), step)):
            a = i[part]
            delta = np.subtract(keys[a, self.shard.selected[a]], keys[a, t[part]], dtype=np.float64)
            out[part] = delta @ self.p if self.p.ndim == 1 else np.einsum("md,md->m", delta, self.p[a])
        return out

    def _ratio(self, ids: Index, sign: float) -> Array:
        """Margin over what is asked of rows that ask, with float64's rounding added or taken off."""
        lost = self.share * (EPS / EPS_SINGLE) * self._size(ids)
        b = 1.0 if self.shard.rhs is None else self.shard.rhs.ravel()[ids]
        return np.asarray((self._exact(ids) + sign * lost) / b)

    def _at_most(self, ids: Index) -> float:
        return float(self._ratio(ids, 1.0).min())


def _with_tight(smallest: float) -> float:
    """Up to where a ratio in float32 may be this one or a tight row's."""
    return smallest + (TOLERANCES.tight + 4 * EPS_SINGLE) * abs(smallest)


def _smallest(ids: Index, depth: Array, k: int) -> tuple[Index, Array]:
    """The k that are deepest."""
    if len(ids) <= k:
        return ids, depth
    keep = np.argpartition(depth, k)[:k]
    return ids[keep], depth[keep]


def _few_of_each(sequence: Index, short: Array) -> Index:
    """Places of the rows of each sequence that fall short most."""
    order = np.lexsort((short, sequence))
    begins = np.flatnonzero(np.diff(sequence[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(begins, np.diff(begins, append=len(order)))
    return order[rank < ROWS_OF_A_SEQUENCE]
