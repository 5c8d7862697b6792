"""The problem on the working rows: ``min .5||p||^2  subject to  A p >= b`` with a few thousand rows.

Rows are scaled to unit norm and right-hand sides to largest entry 1. Then: DAQP for tiny ones, otherwise an interior
point; then an active-set finish in float64. The interior point sees one more column b/SLACK, a shared slack whose
price is SLACK^2/2. That problem always has a solution: its multipliers are those of the original, or a Farkas vector.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lightning_maxmargin.svm.qp.active import Finish, Point, finish, pivot, point_of
from lightning_maxmargin.svm.qp.farkas import by_linear_program, farkas_from
from lightning_maxmargin.svm.qp.interior import Interior, Rows, interior
from lightning_maxmargin.svm.rows import Array, Index, RowProblem

SLACK = 1e3
# Where the margin is below 1e-3 the shared slack must cost more to leave digits for the rest.
DEAR_SLACK = 1e6
ROOM = 3e-14
# Up to this many numbers DAQP beats the interior point: at 280 rows of 128 it needs 1.5 ms for 6, warm still less.
DAQP = 500_000
# Up to this dimension explicit rows beat their Gram for fewer rows than dimensions.
EXPLICIT_DIM = 512


@dataclass(frozen=True)
class SmallResult:
    """Multipliers lam (m,) of the working rows and p of the direction's shape, or a Farkas vector u (m,), b'u = 1."""

    lam: Array
    direction: Array
    farkas: Array | None = None
    finished: bool = False


class SmallProblem:
    """Working rows, scaled. ``A`` (m, dim) explicit or None, ``gram`` (m, m) or None, b (m,)."""

    def __init__(self, problem: RowProblem, ids: Index) -> None:
        self.problem, self.ids = problem, ids
        norms = problem.row_norms.ravel()[ids]
        self.scale = np.where(norms > 0, 1.0, 0.0) / np.where(norms > 0, norms, 1.0)
        b = problem.rhs.ravel()[ids] * self.scale
        self.top = float(b.max()) if len(b) and b.max() > 0 else 1.0
        self.b = b / self.top
        # Next to a row of norm 1e-12 the other right-hand sides are lost in rounding; they are met with room instead.
        self.b[(b > 0) & (self.b < 1e-3)] += ROOM
        self.hopeless = np.flatnonzero((norms == 0) & (problem.rhs.ravel()[ids] > 0))
        self.A: Array | None = None
        self.gram: Array | None = None
        if problem.dim <= max(len(ids), EXPLICIT_DIM):
            self.A = problem.rows(ids) * self.scale[:, None]
        else:
            self.gram = problem.gram(ids) * self.scale[:, None] * self.scale[None, :]

    def times(self, lam: Array) -> Array:
        """A A'lam (m,)."""
        if self.A is not None:
            return self.A @ (lam @ self.A)
        assert self.gram is not None
        return self.gram @ lam

    def result(self, point: Point, finished: bool = True) -> SmallResult:
        """The point in the units of the original rows; not ``finished`` when only a rough answer was wanted."""
        lam = self.top * self.scale * point.lam
        if point.p is not None:
            return SmallResult(lam, self.top * point.p.reshape(self.problem.shape), None, finished)
        return SmallResult(lam, self.problem.combine(self.ids, lam), None, finished)

    def infeasible(self, u: Array) -> SmallResult:
        """The proof that there is no point."""
        return SmallResult(np.zeros_like(u), np.zeros(self.problem.shape), u)


def solve_small(
    problem: RowProblem, ids: Index, active: npt.NDArray[np.bool_] | None = None, tol: float = 1e-12
) -> SmallResult:
    """Solve the working rows ``ids``.

    Args: active (m,) rows thought active, tried before anything else; tol above 1e-9 asks for a rough answer only.
    """
    small = SmallProblem(problem, ids)
    if len(small.hopeless):
        return small.infeasible(_one_row(problem, ids, int(small.hopeless[0])))
    if len(ids) * min(problem.dim, len(ids)) <= DAQP and small.A is not None:
        lam = by_daqp(small, None if active is None else active.astype(np.float64))
    elif small.gram is not None:
        lam = pivot(small.gram, small.b, np.ones(len(ids), bool) if active is None else active)
    else:
        lam = None
    if lam is not None:
        if tol > 1e-9:
            return small.result(point_of(small.A, small.gram, lam))
        done = finish(small.A, small.gram, small.b, lam > 1e-12 * lam.max(initial=0.0), lam)
        if done.gap <= 1e-9:
            return small.result(done.point)
    best = None
    if active is not None and active.any():
        best = finish(small.A, small.gram, small.b, active)
        if best.exact:
            return small.result(best.point)
    return _by_interior(small, tol, best)


def _one_row(problem: RowProblem, ids: Index, at: int) -> Array:
    u = np.zeros(len(ids))
    u[at] = 1 / problem.rhs.ravel()[ids[at]]
    return u


def _by_interior(small: SmallProblem, tol: float, best: Finish | None) -> SmallResult:
    inner, strength = _centre(small, SLACK, tol)
    if strength < 1e-3 and tol > 1e-9:
        inner, strength = _centre(small, SLACK, 1e-12)
    if strength < 1e-5:
        u = farkas_from(small.problem, small.ids, small.scale, small.A, inner.lam)
        if u is not None:
            return small.infeasible(u)
    if strength < 1e-3:
        inner, _ = _centre(small, DEAR_SLACK, 1e-12)
    elif tol > 1e-9:
        return small.result(point_of(small.A, small.gram, inner.lam), finished=False)
    done = finish(small.A, small.gram, small.b, inner.lam > inner.slack, inner.lam)
    if not done.exact and done.gap > 1e-10:
        lam = by_daqp(small, done.point.lam)
        if lam is not None:
            again = finish(small.A, small.gram, small.b, lam > 1e-12 * lam.max(initial=0.0), lam)
            done = min(done, again, key=lambda x: x.gap)
    if best is not None and best.gap < done.gap:
        done = best
    if done.gap > 1e-6:
        # The interior point may stall before its weights show the way; a simplex does not need them.
        u = by_linear_program(small.problem, small.ids, small.scale, small.A)
        if u is not None:
            return small.infeasible(u)
    return small.result(done.point)


def _centre(small: SmallProblem, slack: float, tol: float) -> tuple[Interior, float]:
    """The interior point's answer in the scale of the problem without shared slack, and ||A'lam|| / sum lam."""
    if small.A is not None:
        rows = Rows(A=np.concatenate([small.A, small.b[:, None] / slack], axis=1))
    else:
        assert small.gram is not None
        rows = Rows(gram=small.gram + np.outer(small.b, small.b) / slack**2)
    inner = interior(rows, small.b, tol=tol)
    square = max(float(inner.lam @ small.times(inner.lam)), 0.0)
    strength = float(np.sqrt(square)) / float(inner.lam.sum())
    if strength > 1e-14:
        factor = float(small.b @ inner.lam) / square
        inner = replace(inner, lam=inner.lam * factor, slack=inner.slack * factor)
    return inner, strength


def by_daqp(small: SmallProblem, start: Array | None) -> Array | None:
    """Multipliers by DAQP's dual active set, warm from those of ``start`` that are positive; None where it fails."""
    import daqp

    if small.A is not None:
        A = small.A
    else:
        assert small.gram is not None
        try:
            A = np.asarray(np.linalg.cholesky(small.gram + 1e-14 * np.eye(len(small.gram))), np.float64)
        except np.linalg.LinAlgError:
            return None
    m, r = A.shape
    if m * r > 3_000_000:
        return None
    sense = np.zeros(m, np.int32)
    if start is not None and 0 < np.count_nonzero(start > 0) <= r:
        # Active at the lower bound; 1 alone means the upper one, which DAQP would leave at once.
        sense[start > 0] = 1 + 2
    A = np.ascontiguousarray(A)
    _, _, flag, info = daqp.solve(
        np.eye(r), np.zeros(r), A, np.full(m, 1e30), small.b.copy(), sense, primal_tol=1e-11, iter_limit=20 * (m + r)
    )
    # On other flags info["lam"] is memory nobody wrote.
    return np.maximum(-np.asarray(info["lam"]), 0.0) if flag == 1 else None
