"""DAQP's dual active set, for the working rows of one problem and for many small problems."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
# DAQP's marks for a row that starts active at its lower bound; 1 alone means the upper one, which it leaves at once.
ACTIVE = 1 + 2


def multipliers(A: Array, b: Array, start: Array | None) -> Array | None:
    """lam (m,) >= 0 of ``min .5||p||^2, A p >= b``, warm from those of ``start`` that are positive; None on failure."""
    import daqp

    m, r = A.shape
    sense = np.zeros(m, np.int32)
    if start is not None:
        active = (start > 0).nonzero()[0]
        if len(active) <= r:
            sense[active] = ACTIVE
    A = np.ascontiguousarray(A)
    _, _, flag, info = daqp.solve(
        np.eye(r), np.zeros(r), A, np.full(m, 1e30), b.copy(), sense, primal_tol=1e-11, iter_limit=20 * (m + r)
    )
    # On other flags info["lam"] is memory nobody wrote.
    return np.maximum(-np.asarray(info["lam"]), 0.0) if flag == 1 else None


def batch_multipliers(A: Array, b: Array, count: Index, start: Mask | None) -> tuple[Array, Array]:
    """p (B, r) and lam (B, M) of ``min .5||p||^2, A p >= b`` on the first ``count`` rows; zeros where there is none."""
    from daqp import solve

    B, M, r = A.shape
    # Without its Hessian DAQP 0.11 solves for p and returns wrong multipliers.
    H, f, upper, sense = np.eye(r), np.zeros(r), np.full(M, 1e30), np.zeros(M, np.int32)
    limit = 20 * (M + r)
    starts = None
    if start is not None:
        start &= (start.sum(axis=1) <= r)[:, None]
        starts = ACTIVE * start.astype(np.int32)
    # Arrays of results kept alive in a list would cost a microsecond each.
    p, lam, cut, whole = np.zeros((B, r)), np.zeros((B, M)), count.tolist(), bool((count == M).all())
    for at in range(B):
        a, low, high, kind = A[at], b[at], upper, sense
        if not whole:
            a, low, high, kind = a[: cut[at]], low[: cut[at]], high[: cut[at]], kind[: cut[at]]
        if starts is not None:
            kind = starts[at] if whole else starts[at, : cut[at]]
        p[at], _, flag, info = solve(H, f, a, high, low, kind, primal_tol=1e-11, iter_limit=limit)
        # On other flags info["lam"] is memory nobody wrote.
        if flag == 1:
            lam[at, : cut[at]] = info["lam"]
    return p, np.maximum(-lam, 0.0)
