"""The problem on the working rows: ``min .5||p||^2  subject to  A p >= b`` with a few thousand rows.

Rows are scaled to unit norm and right-hand sides to largest entry 1. Then: DAQP for tiny ones, otherwise an interior
point; then an active-set finish in float64. The interior point sees one more column b/SLACK_PRICE, a shared slack whose
price is SLACK^2/2. That problem always has a solution: its multipliers are those of the original, or a Farkas vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lightning_maxmargin.svm.qp.active import Finish, Point, finish, pivot, point_of
from lightning_maxmargin.svm.qp.daqp import multipliers
from lightning_maxmargin.svm.qp.farkas import by_whitening, farkas_from
from lightning_maxmargin.svm.qp.interior import SLACK_PRICE, Interior, Rows, interior
from lightning_maxmargin.svm.rows import Array, Index, RowProblem

# Where the margin is below 1e-3 the shared slack must cost more to leave digits for the rest.
HIGH_SLACK_PRICE = 1e6
ROOM_PER_ROW = 3e-14
# Up to this many numbers DAQP beats the interior point: at 280 rows of 128 it needs 1.5 ms for 6, warm still less.
MAX_DAQP_NUMBERS = 500_000
# Rounds of the active set that may bring nothing.
PATIENCE = 1
# A tolerance above this asks for a rough answer.
ROUGHEST_EXACT = 1e-9
# Up to this dimension explicit rows beat their Gram for fewer rows than dimensions.
MAX_EXPLICIT_DIM = 512


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
        self.norms = norms = problem.row_norms.ravel()[ids]
        self.scale = np.where(norms > 0, 1.0, 0.0) / np.where(norms > 0, norms, 1.0)
        b = problem.rhs.ravel()[ids] * self.scale
        self.top = float(b.max()) if len(b) and b.max() > 0 else 1.0
        self.b = b / self.top
        # Next to a row of norm 1e-12 the other right-hand sides are lost in rounding; they are met with room instead.
        self.b[(b > 0) & (self.b < 1e-3)] += ROOM_PER_ROW
        self.A: Array | None = None
        self.gram: Array | None = None
        if problem.dim <= max(len(ids), MAX_EXPLICIT_DIM):
            self.A = problem.rows(ids) * self.scale[:, None]
        else:
            self.gram = problem.gram(ids) * self.scale[:, None] * self.scale[None, :]

    def result(self, point: Point, finished: bool = True) -> SmallResult:
        """The point in the units of the original rows; not ``finished`` when only a rough answer was wanted."""
        lam = self.top * self.scale * point.lam
        if point.p is not None:
            return SmallResult(lam, self.top * point.p.reshape(self.problem.shape), None, finished)
        return SmallResult(lam, self.problem.combine(self.ids, lam), None, finished)

    def infeasible(self, u: Array) -> SmallResult:
        """The proof that there is no point."""
        return SmallResult(np.zeros_like(u), np.zeros(self.problem.shape), u)


@dataclass
class Attempt:
    """One solve of the working rows: rows thought active (m,) or None, the wanted precision, the best finish so far."""

    small: SmallProblem
    active: npt.NDArray[np.bool_] | None
    tol: float
    best: Finish | None = None

    def finished(self, lam: Array) -> SmallResult | None:
        """What multipliers of a method are good for: a rough answer as they are, an exact one where they finish."""
        small = self.small
        if self.tol > ROUGHEST_EXACT:
            return small.result(point_of(small.A, small.gram, lam))
        done = finish(small.A, small.gram, small.b, lam > 1e-12 * lam.max(initial=0.0), lam)
        return small.result(done.point) if done.gap <= 1e-9 else None


def _by_zero_row(attempt: Attempt) -> SmallResult | None:
    """A row of norm 0 that asks for more is its own proof that there is no direction."""
    small = attempt.small
    norms, b = small.norms, small.problem.rhs.ravel()[small.ids]
    zero = np.flatnonzero((norms == 0) & (b > 0))
    if not len(zero):
        return None
    u = np.zeros(len(small.ids))
    u[zero[0]] = 1 / b[zero[0]]
    return small.infeasible(u)


def _by_daqp(attempt: Attempt) -> SmallResult | None:
    """DAQP, which is fastest on few rows."""
    small = attempt.small
    if small.A is None or len(small.ids) * min(small.problem.dim, len(small.ids)) > MAX_DAQP_NUMBERS:
        return None
    lam = multipliers(small.A, small.b, None if attempt.active is None else attempt.active.astype(np.float64))
    return None if lam is None else attempt.finished(lam)


def _by_pivot(attempt: Attempt) -> SmallResult | None:
    """Block pivoting on the Gram of rows that are fewer than their dimensions."""
    small = attempt.small
    if small.gram is None:
        return None
    start = np.ones(len(small.ids), bool) if attempt.active is None else attempt.active
    lam = pivot(small.gram, small.b, start)
    return None if lam is None else attempt.finished(lam)


def _by_active_set(attempt: Attempt) -> SmallResult | None:
    """The finish from the rows thought active."""
    small, active = attempt.small, attempt.active
    if active is None or not active.any():
        return None
    # Many new rows are more than it can sort out: without patience 15 rounds, half of the time of 1,373 rows of 384.
    attempt.best = finish(small.A, small.gram, small.b, active, patience=PATIENCE)
    return small.result(attempt.best.point) if attempt.best.exact else None


def _by_interior(attempt: Attempt) -> SmallResult | None:
    """The interior point with its shared slack, then the finish; a Farkas vector where the slack does not vanish."""
    small, tol, best = attempt.small, attempt.tol, attempt.best
    rough = interior(_with_slack(small, SLACK_PRICE), small.b, tol)
    inner, strength = _centre(small, rough)
    if strength < 1e-3 and tol > ROUGHEST_EXACT:
        inner, strength = _centre(small, interior(rough.rows, small.b, begun=rough))
    told = strength < 1e-5
    if told:
        u = farkas_from(small.problem, small.ids, small.scale, small.A, inner.lam)
        if u is not None:
            return small.infeasible(u)
    if strength < 1e-3:
        inner, _ = _centre(small, interior(_with_slack(small, HIGH_SLACK_PRICE), small.b))
    elif tol > ROUGHEST_EXACT:
        return small.result(point_of(small.A, small.gram, inner.lam), finished=False)
    done = finish(small.A, small.gram, small.b, inner.lam > inner.slack, inner.lam)
    if not done.exact and done.gap > 1e-10:
        lam = _multipliers_of(small, done.point.lam)
        if lam is not None:
            once_more = finish(small.A, small.gram, small.b, lam > 1e-12 * lam.max(initial=0.0), lam)
            done = min(done, once_more, key=lambda x: x.gap)
    if best is not None and best.gap < done.gap:
        done = best
    if done.gap > 1e-6 and not told:
        # The interior point may stall before its weights show the way.
        u = by_whitening(small.problem, small.ids, small.scale, small.A)
        if u is not None:
            return small.infeasible(u)
    return small.result(done.point)


def _multipliers_of(small: SmallProblem, start: Array | None) -> Array | None:
    """DAQP's multipliers on explicit rows or on a factor of their Gram."""
    A = small.A
    if A is None:
        assert small.gram is not None
        try:
            A = np.asarray(np.linalg.cholesky(small.gram + 1e-14 * np.eye(len(small.gram))), np.float64)
        except np.linalg.LinAlgError:
            return None
    return None if A.size > 3_000_000 else multipliers(A, small.b, start)


#: Tried in turn until one answers; each says by None that the problem is not for it. Adding one is one entry.
METHODS: tuple[Callable[[Attempt], SmallResult | None], ...] = (
    _by_zero_row,
    _by_daqp,
    _by_pivot,
    _by_active_set,
    _by_interior,
)


def solve_small(
    problem: RowProblem, ids: Index, active: npt.NDArray[np.bool_] | None = None, tol: float = 1e-12
) -> SmallResult:
    """Solve the working rows ``ids`` by the first of :data:`METHODS` that can.

    Args: active (m,) rows thought active; tol above 1e-9 asks for a rough answer only.
    """
    attempt = Attempt(SmallProblem(problem, ids), active, tol)
    for method in METHODS:
        found = method(attempt)
        if found is not None:
            return found
    raise AssertionError("the interior point always answers")


def _with_slack(small: SmallProblem, price: float) -> Rows:
    """The rows with one more column, a slack that they share at this price."""
    if small.A is not None:
        return Rows(A=np.concatenate([small.A, small.b[:, None] / price], axis=1))
    assert small.gram is not None
    return Rows(gram=small.gram + np.outer(small.b, small.b) / price**2)


def _centre(small: SmallProblem, inner: Interior) -> tuple[Interior, float]:
    """The interior point's answer in the scale of the problem without shared slack, and ||A'lam|| / sum lam."""
    square = max(point_of(small.A, small.gram, inner.lam).square, 0.0)
    strength = float(np.sqrt(square)) / float(inner.lam.sum())
    if strength > 1e-14:
        factor = float(small.b @ inner.lam) / square
        inner = replace(inner, lam=inner.lam * factor, slack=inner.slack * factor)
    return inner, strength
