"""The active-set finish: from a guess of the active rows to an answer exact to float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh, qr, solve_triangular
from scipy.linalg.lapack import dpotrf, dpotrs, dpstrf

from lightning_maxmargin.svm.certificate import relative_gap
from lightning_maxmargin.svm.certify import missed_share

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Index = npt.NDArray[np.int64]
# Rows whose part outside the span of the others is smaller than this are left to the others.
RANK = 1e-11
# Multipliers below this share of the largest, and slack below this share of ||p||, are rounding.
TINY_LAM = 1e-13
TINY_SLACK = 2e-15


@dataclass(frozen=True)
class Point:
    """lam (m,), p (r,) (None where only the Gram is known), margins y = A p (m,), and squares ||p||^2, ||A'lam||^2.

    p is kept beside lam: with margin g, sum lam is 1/g^2, and A'lam has lost twice the digits that p has.
    """

    lam: Array
    p: Array | None
    y: Array
    square: float
    dual_square: float


@dataclass(frozen=True)
class Finish:
    """A point with lam >= 0, the gap of the small problem, and whether optimality holds to rounding."""

    point: Point
    gap: float
    exact: bool


def point_of(A: Array | None, gram: Array | None, lam: Array, p: Array | None = None) -> Point:
    """The point of multipliers lam, with p = A'lam where none is given."""
    if A is not None:
        combined = lam @ A
        p = combined if p is None else p
        return Point(lam, p, A @ p, float(p @ p), float(combined @ combined))
    assert gram is not None
    on = np.flatnonzero(lam)
    y = gram[:, on] @ lam[on]
    square = float(lam @ y)
    return Point(lam, None, y, square, square)


def gap_of(point: Point, b: Array) -> float:
    """The certificate's gap on these rows; a row with b = 0 that p misses is no gap and counts by its size."""
    on, length = b > 0, float(np.sqrt(point.square))
    y, missed = point.y, 0.0
    if not on.all():
        missed = missed_share(y[~on], np.full(int((~on).sum()), length))
        y, b, lam = y[on], b[on], point.lam[on]
    else:
        lam = point.lam
    smallest = float((y / b).min()) if len(b) else 0.0
    return relative_gap(float(b @ lam), float(np.sqrt(point.dual_square)), smallest, length) + missed


def on_active(A: Array | None, gram: Array | None, b: Array, on: Index) -> tuple[Array, Array | None]:
    """lam (m,), zero off ``on``, and p with rows ``on`` met with equality; dependent rows are dropped by pivoting."""
    lam = np.zeros(len(b))
    if A is not None:
        Q, R, order = qr(A[on].T, mode="economic", pivoting=True, check_finite=False)
        size = np.abs(np.diag(R))
        rank = int((size > RANK * size[0]).sum())
        Q, R, kept = Q[:, :rank], R[:rank, :rank], on[order[:rank]]
        inner = solve_triangular(R, b[kept], trans=1, check_finite=False)
        for _ in range(2):
            rest = b[kept] - A[kept] @ (Q @ inner)
            inner = inner + solve_triangular(R, rest, trans=1, check_finite=False)
        lam[kept] = solve_triangular(R, inner, check_finite=False)
        return lam, Q @ inner
    assert gram is not None
    L, order, rank, _ = dpstrf(gram[np.ix_(on, on)], lower=1, tol=RANK)
    L, kept = np.tril(L)[:rank, :rank], on[order[:rank] - 1]
    square = gram[np.ix_(kept, kept)]
    part = np.zeros(rank)
    for _ in range(3):
        first = solve_triangular(L, b[kept] - square @ part, lower=True, check_finite=False)
        part = part + solve_triangular(L, first, lower=True, trans=1, check_finite=False)
    lam[kept] = part
    return lam, None


def correction(A: Array | None, gram: Array | None, lam: Array) -> Callable[[Array], Array]:
    """What to add to lam (m,), smallest in the metric of 1/lam, for A'lam to grow by (r,), or gram lam by (m,).

    In this metric small multipliers move little and stay positive.
    """
    root = np.sqrt(lam)
    if A is not None:
        Q, R, order = qr(A * root[:, None], mode="economic", pivoting=True, check_finite=False)
        size = np.abs(np.diag(R))
        rank = int((size > RANK * size[0]).sum())
        Q, R, order = Q[:, :rank], R[:rank, :rank], order[:rank]
        return lambda rest: root * (Q @ solve_triangular(R, rest[order], trans=1, check_finite=False))
    assert gram is not None
    values, vectors = eigh(gram * np.outer(root, root), check_finite=False)
    keep = values > RANK * values[-1]
    values, vectors = values[keep], vectors[:, keep]
    return lambda rest: root * (vectors @ ((vectors.T @ (root * rest)) / values))


def spread(A: Array | None, gram: Array | None, b: Array, on: Index, lam: Array, target: Array | None) -> Array:
    """The multipliers nearest to lam (in the metric of 1/lam) that combine rows ``on`` to the point meeting them.

    Where more rows are tight than there are dimensions, the multipliers are not unique and a basis of the rows may
    have negative ones; those in the middle, which an interior point finds, need only a last correction.
    """
    out = np.zeros(len(b))
    on = on[lam[on] > 0]
    part = lam[on]
    A, gram = None if A is None else A[on], None if gram is None else gram[np.ix_(on, on)]
    correct = correction(A, gram, part)
    for _ in range(2):
        if A is not None and target is not None:
            rest = target - part @ A
        else:
            assert gram is not None
            rest = b[on] - gram @ part
        part = part + correct(rest)
    out[on] = part
    return out


def finish(
    A: Array | None, gram: Array | None, b: Array, active: Mask, lam: Array | None = None, rounds: int = 15,
    patience: int = 15,
) -> Finish:  # fmt: skip
    """Primal-dual active set: meet the active rows, drop those with lam < 0, add those missed, repeat.

    Args: A (m, r) rows of unit norm or their gram (m, m), b (m,), active (m,), lam (m,) >= 0 to improve on; rounds, at
        most, and patience, those that leave as many rows wrong as one before.
    Returns: the best point seen, by the gap of the small problem.
    """
    start = point_of(A, gram, np.zeros(len(b)) if lam is None else lam)
    best = Finish(start, gap_of(start, b), False)
    seen: set[bytes] = set()
    fewest = len(b) + 1
    for at in range(rounds):
        on = np.flatnonzero(active)
        if len(on) == 0 or active.tobytes() in seen:
            break
        seen.add(active.tobytes())
        trial, p = on_active(A, gram, b, on)
        if at == 0 and lam is not None and np.count_nonzero(trial) < len(on) and (trial < 0).any():
            trial = spread(A, gram, b, on, lam, p)
        point = point_of(A, gram, np.maximum(trial, 0.0), p)
        y = point.y if p is not None or not (trial < 0).any() else point_of(A, gram, trial).y
        negative = trial < -TINY_LAM * float(np.abs(trial).max())
        missed = y - b < -TINY_SLACK * max(1.0, float(np.sqrt(point.square)))
        exact, gap = not negative.any() and not missed.any(), gap_of(point, b)
        if gap < best.gap or (exact and gap <= best.gap + 1e-12):
            best = Finish(point, gap, exact)
        wrong = int((negative | missed).sum())
        patience -= wrong >= fewest
        if exact or patience < 0:
            break
        fewest = min(fewest, wrong)
        active = (active & ~negative & (trial != 0)) | missed
    return best


def pivot(gram: Array, b: Array, active: Mask, rounds: int = 12) -> Array | None:
    """Multipliers lam (m,) >= 0 with gram lam >= b and lam (gram lam - b) = 0, by exchanging all wrong rows at once.

    Block principal pivoting needs one plain Cholesky factor a round and three to six rounds where most rows are
    active, an interior point fifteen; None where it does not get there (dependent rows, or rows going in circles).
    """
    fewest, patience = len(b) + 1, 3
    for _ in range(rounds):
        on = np.flatnonzero(active)
        factor, failed = dpotrf(gram[np.ix_(on, on)].T, lower=1, overwrite_a=1, clean=0)
        if failed:
            return None
        lam = np.zeros(len(b))
        lam[on] = dpotrs(factor, b[on], lower=1)[0]
        slack = gram @ lam - b
        wrong = np.where(active, lam < -TINY_LAM * np.abs(lam).max(), slack < -1e-11)
        count = int(wrong.sum())
        if count == 0:
            return np.maximum(lam, 0.0)
        if count < fewest:
            fewest, patience = count, 3
        elif patience == 0:
            return None
        else:
            patience -= 1
        active = active ^ wrong
    return None
