"""Farkas vectors: u >= 0, D'u = 0, b'u = 1, the proof that no direction meets the rows."""

from __future__ import annotations

import numpy as np
from scipy.linalg import qr

from lightning_maxmargin.svm.proofs import MAX_WHITENED_NUMBERS, proves_infeasible
from lightning_maxmargin.svm.qp.active import correction
from lightning_maxmargin.svm.qp.interior import SLACK_PRICE, Rows, interior
from lightning_maxmargin.svm.rows import Array, Index, RowProblem

# Entries below this share of the largest are zero at the exact vector, tried in turn.
CUTS = (0.0, 1e-9, 1e-6, 1e-4, 1e-2)

# Directions in which the rows are shorter than this share of the longest are rounding.
BASIS_RANK = 1e-13
# A margin, in coordinates in which the rows are equally long in each, that leaves no doubt: a simplex need not ask.
SEPARABLE = 1e-4
# Up to so many numbers the rows are held explicitly: 64 MB.
MAX_EXPLICIT_NUMBERS = 8_000_000


def accept(problem: RowProblem, ids: Index, u: Array) -> Array | None:
    """u scaled to b'u = 1 if it proves that no direction meets the rows, else None."""
    value = float(u @ problem.rhs.ravel()[ids])
    if not np.isfinite(u).all() or (u < 0).any() or value <= 0:
        return None
    u = u / value
    return u if proves_infeasible(problem, ids, u) else None


def farkas_from(problem: RowProblem, ids: Index, scale: Array, A: Array | None, lam: Array) -> Array | None:
    """An exact Farkas vector near lam (m,), multipliers of the rows times ``scale``; None where there is none.

    Entries of the projection are weighted by lam, so that small ones move little and stay positive.
    """
    for cut in CUTS:
        on = np.flatnonzero(lam > cut * lam.max())
        u = lam[on] / lam.max()
        for _ in range(3):
            u = _project(problem, ids[on], scale[on], None if A is None else A[on], u)
            found = accept(problem, ids[on], u * scale[on])
            if found is not None:
                return _spread(found, on, len(ids))
            if (u < 0).any() or not np.isfinite(u).all():
                break
    return by_whitening(problem, ids, scale, A)


def by_whitening(problem: RowProblem, ids: Index, scale: Array, A: Array | None) -> Array | None:
    """A Farkas vector in coordinates in which rows A (m, r) are orthonormal columns; then a vertex, by a simplex.

    Whether rows can be met does not depend on coordinates, but both the interior point and the simplex lose a direction
    in which rows are 1e-8 of their length, as vectors have whose entries sum to zero up to rounding.
    """
    if A is None or A.size > MAX_WHITENED_NUMBERS or not np.isfinite(A).all():
        return None
    alive = np.flatnonzero(A.any(axis=1))
    if not (problem.rhs.ravel()[ids[alive]] > 0).any():
        return None
    if len(alive) < len(ids):
        found = by_whitening(problem, ids[alive], scale[alive], A[alive])
        return None if found is None else _spread(found, alive, len(ids))
    basis = _basis(A)
    length = np.linalg.norm(basis, axis=1)
    b = problem.rhs.ravel()[ids] * scale / length
    top = float(b.max())
    unit = np.column_stack([basis / length[:, None], b / (top * SLACK_PRICE)])
    lam = interior(Rows(A=unit), b / top).lam
    if np.linalg.norm(lam @ unit[:, :-1]) > SEPARABLE * lam.sum():
        return None
    u = lam / length
    for cut in CUTS:
        on = np.flatnonzero(u > cut * u.max())
        part = u[on] / u.max()
        for _ in range(3):
            part = part - correction(basis[on], None, part)(part @ basis[on])
            if (part < 0).any() or not np.isfinite(part).all():
                break
            found = accept(problem, ids[on], part * scale[on])
            if found is not None:
                return _spread(found, on, len(ids))
    return by_linear_program(problem, ids, scale, basis)


def _basis(A: Array) -> Array:
    """Orthonormal columns (m, rank) that span those of A."""
    Q, R, _ = qr(A, mode="economic", pivoting=True, check_finite=False)
    size = np.abs(np.diag(R))
    return np.asarray(Q[:, size > BASIS_RANK * size[0]])


def mended(problem: RowProblem, ids: Index, u: Array) -> tuple[Index, Array] | None:
    """An exact Farkas vector near u > 0 on rows that have changed a little: its rows and entries, or None.

    Entries that the projection turns negative are left out; where more than six in ten are, or four projections do not
    suffice, a new proof costs less.
    """
    fewest = max(1, int(0.4 * len(ids)))
    A = problem.rows(ids) if len(ids) * problem.dim <= MAX_EXPLICIT_NUMBERS else None
    scale = np.ones(len(ids))
    for _ in range(4):
        u = _project(problem, ids, scale, A, u)
        on = u > 0
        if not np.isfinite(u).all() or on.sum() < fewest:
            return None
        ids, u, scale, A = ids[on], u[on], scale[on], None if A is None else A[on]
        found = accept(problem, ids, u)
        if found is not None:
            return ids, found
    return None


def _spread(u: Array, on: Index, m: int) -> Array:
    out = np.zeros(m)
    out[on] = u
    return out


def _project(problem: RowProblem, ids: Index, scale: Array, A: Array | None, u: Array) -> Array:
    """One step of u towards D'u = 0 in the metric of 1/u."""
    metric = np.maximum(u, 0.0)
    if A is not None:
        return u - correction(A, None, metric)(u @ A)
    rest = problem.exact_margins(problem.combine(ids, u * scale), ids) * scale
    return u - correction(None, problem.gram(ids) * np.outer(scale, scale), metric)(rest)


def by_linear_program(problem: RowProblem, ids: Index, scale: Array, A: Array | None) -> Array | None:
    """A vertex by HiGHS' dual simplex, then a projection on its basis; non-negative least squares where it fails."""
    from scipy.optimize import linprog, nnls

    if A is None or A.size > MAX_WHITENED_NUMBERS:
        return None
    b = problem.rhs.ravel()[ids] * scale
    b = b / b.max()
    system, target = np.vstack([A.T, b]), np.append(np.zeros(A.shape[1]), 1.0)
    if not np.isfinite(system).all():
        return None
    found = linprog(np.zeros(len(ids)), A_eq=system, b_eq=target, method="highs-ds")
    candidates = [found.x] if found.status == 0 else []
    if not candidates:
        try:
            candidates = [nnls(system, target)[0]]
        except RuntimeError:
            return None
    u = np.maximum(candidates[0], 0.0)
    on = np.flatnonzero(u > 0)
    for _ in range(3):
        if len(on) == 0:
            return None
        exact = accept(problem, ids[on], np.maximum(u[on], 0.0) * scale[on])
        if exact is not None:
            return _spread(exact, on, len(ids))
        u[on] = _project(problem, ids[on], scale[on], A[on], u[on])
        on = on[u[on] > 0]
    return None
