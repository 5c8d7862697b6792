"""A limit problem as rows and right-hand sides: ``min ||W||_F  subject to  <W, row_it> >= b_it``.

Notation: keys k_it (d,), selected token alpha_i, query z_i (dq,), ``Delta_it = k_{i,alpha_i} - k_it`` and
``row_it = vec(Delta_it z_i')``, or Delta_it itself where there are no queries. Then W is a vector p (d,).
The same rows state four problems: attention with p, attention with W, binary labels and Crammer-Singer classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.checks import (
    check_finite,
    check_keys,
    check_labels,
    check_mask,
    check_queries,
    check_rhs,
    check_selected,
    check_values,
)
from lightning_maxmargin.svm.rational import RationalRows, reduced, whole_numbers
from lightning_maxmargin.svm.sizes import difference_norms, norms_and_products, safe_norms

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
EPS = float(np.finfo(np.float64).eps)
# A difference of two keys below this many roundings of their norm is no direction at all.
MERGE = 8 * EPS
# Numbers outside of these are not squared as they are: products of two squares keep all their digits inside.
SMALLEST, LARGEST = 2.0**-400, 2.0**400
# Explicit rows are built in blocks of about 32 MB.
BLOCK = 4_000_000


@dataclass(frozen=True)
class RowProblem:
    r"""Rows ``Delta_it`` or ``vec(Delta_it z_i')`` with right-hand sides, never formed for the full data.

    Rows are numbered ``i * T + t``; ``live`` marks the ones that count: not padding, not the selected token, and not
    a token equal to the selected one (its row would read 0 >= 1; these are counted in ``merged``). All float64.

    Shapes: keys (n, T, d), selected (n,), queries (n, dq) or None, rhs and live (n, T).

    Attributes:
        keys: (n, T, d).
        selected: (n,) token indices.
        queries: (n, dq), or None for p.
        rhs: (n, T) right-hand sides, 0 where no row is live.
        live: (n, T), the rows that count.
        merged: how many tokens equal the selected one.
        key_norms: (n, T) lengths of the keys.
        row_norms: (n, T) lengths of the rows.
        merges: whether tokens equal to the selected one are merged with it.
        extreme: whether some sizes cannot be squared in float64.
        rounded: (n, T), rows that are themselves rounded; None where none is.

    Example:
        >>> import torch
        >>> problem = RowProblem.attention(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), torch.tensor([0]))
        >>> problem.margins(np.array([0.0, 2.0])).tolist()
        [[inf, 2.0]]
    """

    keys: Array
    selected: Index
    queries: Array | None
    rhs: Array
    live: npt.NDArray[np.bool_]
    merged: int = 0
    key_norms: Array = field(default_factory=lambda: np.zeros((0, 0)), repr=False)
    row_norms: Array = field(default_factory=lambda: np.zeros((0, 0)), repr=False)
    merges: bool = False
    extreme: bool = False
    rounded: npt.NDArray[np.bool_] | None = field(default=None, repr=False)

    @classmethod
    def attention(
        cls,
        keys: Tensor,
        selected: Tensor,
        queries: Tensor | None = None,
        mask: Tensor | None = None,
        rhs: Tensor | None = None,
    ) -> RowProblem:
        """The Att-SVM of "Max-Margin Token Selection in Attention Mechanism" (arXiv 2306.13596), or with W.

        Args:
            keys: (n, T, d).
            selected: (n,) token indices.
            queries: (n, dq), for W.
            mask: (n, T), true on tokens.
            rhs: (n, T) >= 0; 1 where None.

        Raises:
            InputError: shapes, indices or numbers are wrong.
        """
        k = check_keys(keys)
        live = check_mask(mask, k)
        alpha = check_selected(selected, live)
        z = check_queries(queries, len(k))
        # Keys with zeros on padding are not copied.
        if not live.all() and k[~live].any():
            k = np.where(live[:, :, None], k, 0.0)
        return cls._build(k, alpha, z, check_rhs(rhs, live), live.copy(), merge=True)

    @classmethod
    def binary(cls, values: Tensor, labels: Tensor) -> RowProblem:
        """Rows y_i x_i, no intercept: token 0 is y_i x_i, token 1 is zero.

        Args:
            values: x (n, d).
            labels: (n,) in {-1, 1}.

        Raises:
            InputError: shapes or labels are wrong.
        """
        x = check_values(values)
        y, classes = check_labels(labels, len(x), None)
        assert classes is None
        keys = np.zeros((len(x), 2, x.shape[1]))
        np.multiply(x, y[:, None], out=keys[:, 0])
        return cls._build(keys, np.zeros(len(x), np.int64), None, None, np.ones(keys.shape[:2], bool), merge=False)

    @classmethod
    def multiclass(cls, values: Tensor, labels: Tensor, num_classes: int | None = None) -> RowProblem:
        """Crammer-Singer rows (V_y - V_k)'x, no intercept: the keys are unit vectors, the queries x. W is V (K, d).

        Args:
            values: x (n, d).
            labels: (n,) class indices.
            num_classes: K; the largest label + 1 where None.

        Raises:
            InputError: shapes or labels are wrong.
        """
        x = check_values(values)
        y, classes = check_labels(labels, len(x), num_classes, as_classes=True)
        assert classes is not None
        keys = np.broadcast_to(np.eye(classes), (len(x), classes, classes))
        return cls._build(keys, y.astype(np.int64), x, None, np.ones(keys.shape[:2], bool), merge=False)

    @classmethod
    def explicit(cls, rows: Array, rhs: Array) -> RowProblem:
        """Rows as given: token 0 is the row, token 1 is zero; numbered 2 i + 1.

        Args:
            rows: (m, d).
            rhs: (m,) >= 0.
        """
        keys = np.stack([rows, np.zeros_like(rows)], axis=1)
        b = np.column_stack([np.zeros(len(rhs)), rhs])
        return cls._build(keys, np.zeros(len(rows), np.int64), None, b, np.ones(b.shape, bool), merge=False)

    @classmethod
    def _build(
        cls,
        keys: Array,
        selected: Index,
        queries: Array | None,
        rhs: Array | None,
        live: npt.NDArray[np.bool_],
        merge: bool,
    ) -> RowProblem:
        n = len(keys)
        live[np.arange(n), selected] = False
        with np.errstate(over="ignore", invalid="ignore"):
            key_norms, cross = norms_and_products(keys, selected, not merge and queries is None)
        extreme = _is_extreme(key_norms, keys)
        if extreme:
            check_finite(keys, "keys")
            key_norms, norms = safe_norms(keys), safe_norms(_differences(keys, selected))
        else:
            norms = difference_norms(keys, selected, key_norms, cross)
        largest = np.maximum(key_norms, key_norms[np.arange(n), selected][:, None])
        equal = live & (norms <= MERGE * largest) if merge else np.zeros_like(live)
        live &= ~equal
        if queries is not None:
            with np.errstate(over="ignore"):
                lengths = np.linalg.norm(queries, axis=1)
            if _is_extreme(lengths, queries):
                lengths, extreme = safe_norms(queries), True
            with np.errstate(over="ignore"):
                norms = norms * lengths[:, None]
            asked = norms[live & (norms > 0)]
            extreme = extreme or bool(((asked < SMALLEST) | (asked > LARGEST)).any())
        b = np.where(live, 1.0 if rhs is None else rhs, 0.0)
        if rhs is not None:
            asked = b[b > 0]
            extreme = extreme or bool(((asked < SMALLEST) | (asked > LARGEST)).any())
        return cls(keys, selected, queries, b, live, int(equal.sum()), key_norms, norms, merge, extreme)

    def normalised(self) -> tuple[RowProblem, int, int] | None:
        """The problem with keys, queries and right-hand sides of size 1, by powers of two, and two exponents.

        Of rows ``2^row`` and of right-hand sides ``2^rhs`` times the new ones. None where sizes differ by so much that
        small numbers would be lost.
        """
        keys, first = _scaled(self.keys)
        queries, second = (None, 0) if self.queries is None else _scaled(self.queries)
        b, third = _scaled(self.rhs)
        if keys is None or b is None or (self.queries is not None and queries is None):
            return None
        live = self.live.copy()
        live[np.arange(len(live)), self.selected] = True
        if not self.merges:
            live[:] = True
        problem = RowProblem._build(keys, self.selected, queries, b, live, self.merges)
        problem = replace(problem, live=self.live, rhs=np.where(self.live, b, 0.0), merged=self.merged)
        return None if problem.extreme else (problem, first + second, third)

    def rational(self, ids: Index) -> RationalRows:
        """The given rows and right-hand sides without rounding.

        Args:
            ids: (m,) numbers of rows.
        """
        i, t = np.divmod(ids, self.keys.shape[1])
        pair, exponents = whole_numbers(np.concatenate([self.keys[i, self.selected[i]], self.keys[i, t]], axis=1))
        d = self.keys.shape[2]
        rows = pair[:, :d] - pair[:, d:]
        if self.queries is not None:
            z, more = whole_numbers(self.queries[i])
            rows = (rows[:, :, None] * z[:, None, :]).reshape(len(ids), -1)
            exponents = [a + b for a, b in zip(exponents, more, strict=True)]
        return reduced(rows, exponents, self.rhs.ravel()[ids])

    def is_rounded(self, ids: Index) -> bool:
        """Whether some of these rows are themselves rounded, as copies of another's differences may be.

        Args:
            ids: (m,) numbers of rows.
        """
        return self.rounded is not None and bool(self.rounded.ravel()[ids].any())

    def unit_rounding(self) -> float:
        """What a margin may have lost, as a share of ||row|| ||W||: a sum of d (and dq) products, each rounded."""
        terms = self.keys.shape[2] + (0 if self.queries is None else self.queries.shape[1])
        return unit_rounding(terms)

    def is_small(self, numbers: int) -> bool:
        """Whether the rows hold at most so many numbers.

        Args:
            numbers: how many.
        """
        return int(self.live.sum()) * self.dim <= numbers

    @cached_property
    def positive(self) -> npt.NDArray[np.bool_]:
        """Rows (n, T) with a right-hand side above 0."""
        return np.asarray(self.rhs > 0)

    @cached_property
    def zero(self) -> npt.NDArray[np.bool_] | None:
        """Live rows (n, T) with right-hand side 0; None where there are none."""
        zero = self.live & (self.rhs == 0)
        return zero if zero.any() else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the direction: (d,) or (d, dq)."""
        d = self.keys.shape[2]
        return (d,) if self.queries is None else (d, self.queries.shape[1])

    @property
    def dim(self) -> int:
        """Number of entries of the direction."""
        return int(np.prod(self.shape))

    @property
    def ids(self) -> Index:
        """Numbers i * T + t of the live rows."""
        return np.flatnonzero(self.live)

    def spread(self, ids: Index, x: Array) -> Array:
        """Numbers of the rows ``ids`` at their places in (n, T), 0 elsewhere.

        Args:
            ids: (m,) numbers of rows.
            x: (m,).
        """
        out = np.zeros(self.live.shape)
        out.ravel()[ids] = x
        return out

    def with_rhs(self, rhs: Array) -> RowProblem:
        """The same rows with other right-hand sides (n, T).

        Args:
            rhs: (n, T), read on live rows.
        """
        return replace(self, rhs=np.where(self.live, rhs, 0.0))

    def differences(self, ids: Index, dtype: Any = np.float64) -> Any:
        """Delta of the given rows, subtracted before anything else so that near ties keep their digits: (m, d).

        Args:
            ids: (m,) numbers of rows.
            dtype: of the subtraction and what comes of it.
        """
        i, t = np.divmod(ids, self.keys.shape[1])
        return self.keys[i, self.selected[i]].astype(dtype, copy=False) - self.keys[i, t]

    def rows(self, ids: Index, dtype: Any = np.float64) -> Any:
        """The given rows explicitly: (m, dim), of differences of this dtype.

        Args:
            ids: (m,) numbers of rows.
            dtype: of the differences.
        """
        delta = self.differences(ids, dtype)
        if self.queries is None:
            return delta
        z = self.queries[ids // self.keys.shape[1]]
        return (delta[:, :, None] * z[:, None, :]).reshape(len(ids), delta.shape[1] * z.shape[1])

    def gram(self, ids: Index, other: Index | None = None) -> Array:
        """Inner products of rows without forming them, (D D') * (Z Z'): (m, m) or (m, other).

        Args:
            ids: (m,) numbers of rows.
            other: (k,) those against which; ``ids`` where None.

        Returns:
            (m, m) or (m, k).
        """
        left = self.differences(ids)
        right = left if other is None else self.differences(other)
        gram = left @ right.T
        if self.queries is not None:
            T = self.keys.shape[1]
            z = self.queries[ids // T]
            gram *= z @ (z if other is None else self.queries[other // T]).T
        return gram

    def combine(self, ids: Index, lam: Array) -> Array:
        """sum lam * row, of the direction's shape.

        Args:
            ids: (m,) numbers of rows.
            lam: (m,) multipliers.
        """
        out = np.zeros(self.shape)
        step = max(1, BLOCK // self.keys.shape[2])
        for at in range(0, len(ids), step):
            part = ids[at : at + step]
            out += self.combined(part, self.differences(part) * lam[at : at + step, None])
        return out

    def combined(self, ids: Index, weighted: Array) -> Array:
        """sum of weighted differences (m, d) times their queries: one vector for each sequence, then its product.

        Args:
            ids: (m,) numbers of rows, in order.
            weighted: (m, d) differences, each times its multiplier.
        """
        if self.queries is None:
            return np.asarray(weighted.sum(0))
        sequence = ids // self.keys.shape[1]
        first, _ = runs(sequence)
        return np.asarray(np.add.reduceat(weighted, first).T @ self.queries[sequence[first]])

    def mean_row(self) -> Array:
        """The sum over sequences of their mean live row, (d,) or (d, dq)."""
        return mean_row(self.keys, self.live, self.selected, self.queries)

    def projected(self, W: Array) -> Array:
        """p or W z_i, what each sequence's keys are scored with: (d,) or (n, d).

        Args:
            W: (d,) or (d, dq).
        """
        return W if self.queries is None else self.queries @ W.T

    def margins(self, W: Array) -> Array:
        """All <W, row_it> by one product with the keys: (n, T), inf where no row is live.

        Rows near the smallest margin over b (with b = 0: those that may be missed) whose digits the product may have
        cancelled are recomputed from differences.

        Args:
            W: (d,) or (d, dq).
        """
        margins, error = self._product(W)
        smallest = self._smallest(margins + error)
        doubtful = self.live & (margins - error <= (smallest + 1e-4 * abs(smallest)) * self.rhs)
        ids = np.flatnonzero(doubtful)
        margins.ravel()[ids] = self.exact_margins(W, ids)
        return margins

    def exact_margins(self, W: Array, ids: Index) -> Array:
        """<W, row> of the given rows from explicit differences: (m,).

        Args:
            W: (d,) or (d, dq).
            ids: (m,) numbers of rows.
        """
        p, T = self.projected(W), self.keys.shape[1]
        out = np.empty(len(ids))
        step = max(1, BLOCK // self.keys.shape[2])
        for at in range(0, len(ids), step):
            part = ids[at : at + step]
            delta = self.differences(part)
            out[at : at + step] = delta @ p if p.ndim == 1 else np.einsum("md,md->m", delta, p[part // T])
        return out

    def _product(self, W: Array) -> tuple[Array, Array]:
        n, T, d = self.keys.shape
        p, length = self.projected(W), float(np.linalg.norm(W))
        scores = self.keys.reshape(n * T, d) @ p if p.ndim == 1 else np.matmul(self.keys, p[:, :, None])
        scores = scores.reshape(n, T)
        chosen = (np.arange(n), self.selected)
        margins = np.where(self.live, scores[chosen][:, None] - scores, np.inf)
        if self.queries is not None:
            length = length * np.linalg.norm(self.queries, axis=1)[:, None]
        error = self.unit_rounding() * (self.key_norms + self.key_norms[chosen][:, None]) * length
        return margins, error

    def _smallest(self, margins: Array) -> float:
        ratio = margins[self.rhs > 0] / self.rhs[self.rhs > 0]
        return float(ratio.min()) if len(ratio) else 0.0


def unit_rounding(terms: int) -> float:
    """What a sum of so many products of rounded differences may have lost, as a share of the two lengths."""
    return 0.5 * EPS * (terms + 6)


def runs(numbers: Index) -> tuple[Index, Index]:
    """Where each run of equal numbers >= 0 begins, and which run each is in."""
    new = np.diff(numbers, prepend=-1) != 0
    return np.flatnonzero(new), np.cumsum(new) - 1


def mean_row(keys: Any, live: npt.NDArray[np.bool_], selected: Index, queries: Array | None) -> Array:
    """The sum over sequences of their mean live row, by one product with the keys; of the direction's shape."""
    count, (n, T, d) = live.sum(1), keys.shape
    weight = live * (1 / np.maximum(count, 1)).astype(keys.dtype)[:, None]
    weight[np.arange(n), selected] = -(count > 0).astype(keys.dtype)
    if queries is None:
        return -np.asarray(weight.reshape(-1) @ keys.reshape(n * T, d), np.float64)
    return -np.asarray(np.matmul(weight[:, None, :], keys)[:, 0].T @ queries, np.float64)


def _is_extreme(norms: Array, vectors: Array) -> bool:
    """Whether vectors (..., d) hold sizes whose squares float64 cannot tell; Inf and NaN count as well."""
    with np.errstate(invalid="ignore"):
        tiny = norms < SMALLEST
        return not (norms <= LARGEST).all() or (bool(tiny.any()) and bool(vectors[tiny].any()))


def _differences(keys: Array, selected: Index) -> Array:
    """k_alpha - k_t of all tokens: (n, T, d)."""
    with np.errstate(over="ignore"):
        delta = keys[np.arange(len(keys)), selected][:, None] - keys
    if not np.isfinite(delta).all():
        where = [int(at) for at in np.argwhere(~np.isfinite(delta))[0]]
        raise InputError(f"keys at {where} are too large to subtract: rescale them")
    return delta


def _scaled(x: Array) -> tuple[Array | None, int]:
    """x over the power of two next to its largest entry, None where that loses small ones; and the exponent."""
    top = int(np.frexp(np.abs(x).max(initial=0.0))[1])
    small = np.ldexp(x, -top)
    return (small if np.array_equal(np.ldexp(small, top), x) else None), top
