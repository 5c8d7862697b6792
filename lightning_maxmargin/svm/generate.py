"""Constraint generation: solve on few rows, look at all of them with one product, add the worst, stop on the gap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_maxmargin.svm.certify import missed_share, relative_gap, residual, rounding
from lightning_maxmargin.svm.qp.working import solve_small
from lightning_maxmargin.svm.rows import Array, Index, RowProblem

MAX_ROUNDS = 60
# Rough answers suffice until the gap is below this.
ROUGH = 1e-3
# Rows whose margin is this many times the right-hand side are let go once there are many.
NEAR = 1.5
# Up to this many numbers DAQP takes all rows in less time than a second look at them.
ALL = 20_000


@dataclass(frozen=True)
class Outcome:
    """Multipliers ``lam`` of the rows ``ids`` and their p = D'lam, or a Farkas vector where ``infeasible``.

    margins: (n, T) of the direction, where they are known already. scaled: whether its smallest row is 1 already.
    note: what is known where it cannot be certified.
    """

    ids: Index
    lam: Array
    direction: Array
    infeasible: bool
    violation: float
    rounds: int
    margins: Array | None = None
    scaled: bool = False
    note: str = ""


def _first_rows(problem: RowProblem, warm: Index | None) -> Index:
    ids = problem.ids
    if (len(ids) <= 300 + 2 * problem.dim and len(ids) <= 3000) or len(ids) * problem.dim <= ALL:
        return ids
    if warm is not None and len(warm):
        return np.union1d(warm, ids[problem.row_norms.ravel()[ids] == 0])
    start = problem.mean_row()
    return worst_rows(problem, problem.margins(start), np.zeros(0, np.int64), np.inf, start)


def worst_rows(problem: RowProblem, margins: Array, working: Index, below: float, p: Array) -> Index:
    """The four smallest margins of each sequence that fall short, worst first, not too many."""
    n, T = margins.shape
    each = min(4, T)
    short = margins - problem.rhs
    if each == T:
        ids = problem.ids
    else:
        t = np.argpartition(short, each - 1, axis=1)[:, :each]
        ids = (np.arange(n)[:, None] * T + t).ravel()
        ids = ids[problem.live.ravel()[ids]]
    error = rounding(problem, p).ravel()
    value, b = short.ravel()[ids], problem.rhs.ravel()[ids]
    tolerance = 1e-11 * b + np.where(b == 0, 1e-12 * problem.row_norms.ravel()[ids] * np.linalg.norm(p), 0.0)
    missed = value < -tolerance - error[ids] if np.isfinite(below) else np.ones(len(ids), bool)
    # A table over all rows: numpy's set routines hash, a millisecond a call.
    known = np.zeros(n * T, bool)
    known[working] = True
    ids = ids[missed & ~known[ids]]
    # Of 2,000 labels 600 rows to start with take .85 of the time of 1,000, of 5,000 more.
    first = min(1000, max(600, n * T // 10))
    most = max(1000 if np.isfinite(below) else first, min(problem.dim, 1500))
    if len(ids) > most:
        norms = problem.row_norms.ravel()[ids]
        depth = short.ravel()[ids] / np.where(norms > 0, norms, 1e-300)
        ids = ids[np.argpartition(depth, most)[:most]]
    return np.sort(ids)


def smallest_of(problem: RowProblem, margins: Array) -> float:
    """The smallest margin over its right-hand side, of rows with b > 0."""
    on = problem.rhs > 0
    return float(np.divide(margins, problem.rhs, out=np.full(on.shape, np.inf), where=on).min())


def _bounds(problem: RowProblem, ids: Index, lam: Array, margins: Array, p: Array) -> float:
    """Gap of the whole problem, the rows bounding from above and the multipliers from below, and the most that a row
    with b = 0 is missed by: leaving those out made a round that misses them the best in 31 of 180 rate-coupled
    problems of (300, 32, 128), (200, 64, 192) and (400, 32, 96), which then ended unverified."""
    smallest, length = smallest_of(problem, margins), float(np.linalg.norm(p))
    zero = problem.live & (problem.rhs == 0)
    combined = float(np.linalg.norm(problem.combine(ids, lam)))
    gap = relative_gap(float(lam @ problem.rhs.ravel()[ids]), combined, smallest, length)
    return gap + missed_share(margins[zero], problem.row_norms[zero] * length)


def generate(problem: RowProblem, warm: Index | None = None, was: npt.NDArray[np.bool_] | None = None) -> Outcome:
    """Solve ``problem`` (at least one row with b > 0).

    Args: warm, rows to start from; was, which of them were active, all by default.
    """
    working = _first_rows(problem, warm)
    if not (problem.rhs.ravel()[working] > 0).any():
        working = np.union1d(working, np.flatnonzero(problem.rhs.ravel() > 0)[:1])
    active = None
    if warm is not None:
        known = np.zeros(problem.live.size, bool)
        known[warm if was is None else warm[was]] = True
        active = known[working]
    gap, best = np.inf, None
    for at in range(1, MAX_ROUNDS + 1):
        everything = len(working) == int(problem.live.sum())
        rough = gap > 0.1 and not everything
        small = solve_small(problem, working, active, ROUGH if rough else 1e-12)
        if small.farkas is not None:
            u = small.farkas
            return Outcome(working, u, np.zeros(problem.shape), True, residual(problem, working, u), at)
        rough = not small.finished
        lam = small.lam
        p = small.direction
        margins = problem.margins(p)
        gap = _bounds(problem, working, lam, margins, p)
        if best is None or gap <= best[0] or not np.isfinite(best[0]):
            best = (gap, working, lam, p, margins)
        fresh = worst_rows(problem, margins, working, 0.0, p)
        if len(fresh) == 0 and not rough:
            break
        if everything or (at == MAX_ROUNDS):
            break
        keep = _kept(problem, working, lam, margins, len(fresh))
        # With more dimensions than rows most of the missed rows will be active.
        likely = np.full(len(fresh), problem.dim > len(working) + len(fresh))
        active = np.concatenate([lam[keep] > 0, likely]) if not rough else None
        working = np.concatenate([working[keep], fresh])
        order = np.argsort(working)
        working, active = working[order], None if active is None else active[order]
    assert best is not None
    gap, working, lam, p, margins = best
    return Outcome(working, lam, p, False, 0.0, at, margins)


def _kept(problem: RowProblem, working: Index, lam: Array, margins: Array, fresh: int) -> Array:
    """Rows worth keeping: all of them until they outnumber three times the dimension, then those near the margin."""
    if len(working) + fresh <= max(1000, min(problem.dim, 1500)):
        return np.ones(len(working), bool)
    b = problem.rhs.ravel()[working]
    near = margins.ravel()[working] < NEAR * b + 1e-12 * problem.row_norms.ravel()[working]
    return near | (lam > 1e-3 * lam.max())
