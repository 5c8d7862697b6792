"""A limit problem as rows and right-hand sides: ``min ||W||_F  subject to  <W, row_it> >= b_it``.

Notation: keys k_it (d,), selected token alpha_i, query z_i (dq,), ``Delta_it = k_{i,alpha_i} - k_it`` and
``row_it = vec(Delta_it z_i')``, or Delta_it itself where there are no queries. Then W is a vector p (d,).
The same rows state four problems: attention with p, attention with W, binary labels and Crammer-Singer classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lightning_maxmargin.svm.checks import (
    check_keys,
    check_labels,
    check_mask,
    check_norms,
    check_queries,
    check_rhs,
    check_selected,
    check_values,
)
from lightning_maxmargin.svm.sizes import difference_norms, norms_and_products

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
EPS = float(np.finfo(np.float64).eps)
# A difference of two keys below this many roundings of their norm is no direction at all.
MERGE = 8 * EPS
# Explicit rows are built in blocks of about 32 MB.
BLOCK = 4_000_000


@dataclass(frozen=True)
class RowProblem:
    r"""Rows ``Delta_it`` or ``vec(Delta_it z_i')`` with right-hand sides, never formed for the full data.

    Rows are numbered ``i * T + t``; ``live`` marks the ones that count: not padding, not the selected token, and not
    a token equal to the selected one (its row would read 0 >= 1; these are counted in ``merged``). All float64.

    Shapes: keys (n, T, d), selected (n,), queries (n, dq) or None, rhs and live (n, T).

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

        Args: keys (n, T, d), selected (n,), queries (n, dq), mask (n, T) true on tokens, rhs (n, T) >= 0.
        Raises: InputError where shapes, indices or numbers are wrong.
        """
        k = check_keys(keys)
        live = check_mask(mask, k)
        alpha = check_selected(selected, live)
        z = check_queries(queries, len(k))
        if not live.all():
            k = np.where(live[:, :, None], k, 0.0)
        return cls._build(k, alpha, z, check_rhs(rhs, live), live.copy(), merge=True)

    @classmethod
    def binary(cls, values: Tensor, labels: Tensor) -> RowProblem:
        """Rows y_i x_i, no intercept: token 0 is y_i x_i, token 1 is zero. values (n, d), labels (n,) in {-1, 1}."""
        x = check_values(values)
        y, classes = check_labels(labels, len(x), None)
        assert classes is None
        keys = np.stack([x * y[:, None], np.zeros_like(x)], axis=1)
        return cls._build(keys, np.zeros(len(x), np.int64), None, None, np.ones(keys.shape[:2], bool), merge=False)

    @classmethod
    def multiclass(cls, values: Tensor, labels: Tensor, num_classes: int | None = None) -> RowProblem:
        """Crammer-Singer rows (V_y - V_k)'x, no intercept: the keys are unit vectors, the queries x. W is V (K, d)."""
        x = check_values(values)
        y, classes = check_labels(labels, len(x), num_classes, as_classes=True)
        assert classes is not None
        keys = np.broadcast_to(np.eye(classes), (len(x), classes, classes))
        return cls._build(keys, y.astype(np.int64), x, None, np.ones(keys.shape[:2], bool), merge=False)

    @classmethod
    def explicit(cls, rows: Array, rhs: Array) -> RowProblem:
        """Rows (m, d) with rhs (m,) >= 0 as given: token 0 is the row, token 1 is zero; numbered 2 i + 1."""
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
        n, T, _ = keys.shape
        live[np.arange(n), selected] = False
        with np.errstate(over="ignore", invalid="ignore"):
            key_norms, cross = norms_and_products(keys, selected, not merge and queries is None)
        check_norms(key_norms, keys)
        norms = difference_norms(keys, selected, key_norms, cross)
        largest = np.maximum(key_norms, key_norms[np.arange(n), selected][:, None])
        equal = live & (norms <= MERGE * largest) if merge else np.zeros_like(live)
        live &= ~equal
        if queries is not None:
            norms = norms * np.linalg.norm(queries, axis=1)[:, None]
        b = np.ones((n, T)) if rhs is None else rhs
        return cls(keys, selected, queries, np.where(live, b, 0.0), live, int(equal.sum()), key_norms, norms)

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

    @property
    def uniform(self) -> bool:
        """Whether every right-hand side is 1."""
        return bool((self.rhs[self.live] == 1.0).all())

    def with_rhs(self, rhs: Array) -> RowProblem:
        """The same rows with other right-hand sides (n, T)."""
        return replace(self, rhs=np.where(self.live, rhs, 0.0))

    def differences(self, ids: Index) -> Array:
        """Delta of the given rows, subtracted before anything else so that near ties keep their digits: (m, d)."""
        i, t = np.divmod(ids, self.keys.shape[1])
        return self.keys[i, self.selected[i]] - self.keys[i, t]

    def rows(self, ids: Index) -> Array:
        """The given rows explicitly: (m, dim)."""
        delta = self.differences(ids)
        if self.queries is None:
            return delta
        z = self.queries[ids // self.keys.shape[1]]
        return (delta[:, :, None] * z[:, None, :]).reshape(len(ids), delta.shape[1] * z.shape[1])

    def gram(self, ids: Index, other: Index | None = None) -> Array:
        """Inner products of rows without forming them, (D D') * (Z Z'): (m, m) or (m, other)."""
        left = self.differences(ids)
        right = left if other is None else self.differences(other)
        gram = left @ right.T
        if self.queries is not None:
            T = self.keys.shape[1]
            z = self.queries[ids // T]
            gram *= z @ (z if other is None else self.queries[other // T]).T
        return gram

    def combine(self, ids: Index, lam: Array) -> Array:
        """sum lam * row, of the direction's shape."""
        out = np.zeros(self.shape)
        step = max(1, BLOCK // self.keys.shape[2])
        for at in range(0, len(ids), step):
            part = ids[at : at + step]
            weighted = self.differences(part) * lam[at : at + step, None]
            z = None if self.queries is None else self.queries[part // self.keys.shape[1]]
            out += weighted.sum(0) if z is None else weighted.T @ z
        return out

    def mean_row(self) -> Array:
        """The sum over sequences of their mean live row, by one product with the keys; of the direction's shape."""
        count = self.live.sum(1)
        weight = self.live / np.maximum(count, 1)[:, None]
        chosen = self.keys[np.arange(len(count)), self.selected] * (count > 0)[:, None]
        if self.queries is None:
            n, T, d = self.keys.shape
            return chosen.sum(0) - weight.reshape(-1) @ self.keys.reshape(n * T, d)
        return (chosen - np.matmul(weight[:, None, :], self.keys)[:, 0]).T @ self.queries

    def projected(self, W: Array) -> Array:
        """p or W z_i, what each sequence's keys are scored with: (d,) or (n, d)."""
        return W if self.queries is None else self.queries @ W.T

    def margins(self, W: Array) -> Array:
        """All <W, row_it> by one product with the keys: (n, T), inf where no row is live.

        Rows near the smallest margin whose digits the product may have cancelled are recomputed from differences.
        """
        margins, error = self._product(W)
        doubtful = self.live & (margins - error <= 1.0001 * self.rhs * self._scale(margins + error))
        ids = np.flatnonzero(doubtful)
        margins.ravel()[ids] = self.exact_margins(W, ids)
        return margins

    def exact_margins(self, W: Array, ids: Index) -> Array:
        """<W, row> of the given rows from explicit differences: (m,)."""
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
        p = self.projected(W)
        scores = self.keys.reshape(n * T, d) @ p if p.ndim == 1 else np.matmul(self.keys, p[:, :, None])
        scores = scores.reshape(n, T)
        chosen = (np.arange(n), self.selected)
        margins = np.where(self.live, scores[chosen][:, None] - scores, np.inf)
        length = np.linalg.norm(p) if p.ndim == 1 else np.linalg.norm(p, axis=1)[:, None]
        error = 4 * EPS * (self.key_norms + self.key_norms[chosen][:, None]) * length
        return margins, error

    def _scale(self, margins: Array) -> float:
        ratio = margins[self.rhs > 0] / self.rhs[self.rhs > 0]
        return max(0.0, float(ratio.min())) if len(ratio) else 0.0
