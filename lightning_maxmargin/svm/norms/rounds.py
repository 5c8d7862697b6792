"""Other norms by constraint generation, from the l2 solution and on the rows that matter, until the gap closes.

Which rows can be met does not depend on the norm, so that the l2 solver's verdict and Farkas vector stand, and its
solution is where the others start.
"""

from __future__ import annotations

import numpy as np

from lightning_maxmargin.svm.certify import missed_share, relative_gap
from lightning_maxmargin.svm.generate import Outcome, worst_rows
from lightning_maxmargin.svm.norms.names import Norm, dual_norm_of, norm_of
from lightning_maxmargin.svm.norms.registry import WorkingRows, entry_of
from lightning_maxmargin.svm.rows import Array, Index, RowProblem

MAX_ROUNDS = 60
# Up to this many rows there is nothing to gain by leaving some out.
FEW = 256
# While rows are missing their small problem need not be solved further than this.
ROUGH = 1e-3
# Gap over all rows at which missed ones no longer matter.
CLOSED = 3e-10
# A row with b = 0 is missed by more than rounding.
MISSED = 1e-10


def generate_norm(problem: RowProblem, norm: Norm, base: Outcome) -> Outcome:
    """min ||W|| in ``norm``, not l2, from the l2 outcome of a feasible problem with at least one row b > 0.

    An l2 outcome that does not meet the rows, so that nothing is known, is handed back as it is.
    """
    on = problem.rhs > 0
    if float(problem.margins(base.direction)[on].min()) <= 0:
        return base
    working = _first(problem, base)
    everything = int((problem.row_norms.ravel()[problem.ids] > 0).sum())
    start = (base.direction, base.ids, base.lam)
    best: tuple[float, Index, Array, Array] = (np.inf, base.ids, base.lam, base.direction)
    rough = len(working) < everything
    for at in range(1, MAX_ROUNDS + 1):
        # On rows of very different size the powers of a step may overflow; the certificate judges what comes back.
        with np.errstate(all="ignore"):
            found = _solve_working(problem, norm, working, start, ROUGH if rough else 0.0)
        if found is None:
            break
        W, lam = found
        margins = problem.margins(W)
        gap, missed = _bounds(problem, norm, working, lam, margins, W)
        if gap < best[0] or not np.isfinite(best[0]):
            best = (gap, working, lam, W)
        if len(working) == everything and not rough:
            break
        fresh = worst_rows(problem, margins, working, 0.0, W)
        fresh = fresh[problem.row_norms.ravel()[fresh] > 0]
        if not rough and (len(fresh) == 0 or (gap <= CLOSED and not missed)):
            break
        # A rough answer that misses no row says which rows count: the next is the last or nearly so.
        rough = len(fresh) > 0 and rough and at < MAX_ROUNDS // 2
        working = np.union1d(working, fresh)
    gap, working, lam, W = best
    # Of dual norm 1, so that b'lam is the bound on the norm itself.
    size = dual_norm_of(problem.combine(working, lam), norm)
    lam = lam / size if 0 < size < np.inf else lam
    return Outcome(working, lam, W, False, 0.0, base.rounds + at)


def _first(problem: RowProblem, base: Outcome) -> Index:
    """All of few rows; else the support of the l2 solution and the next nearest rows, about twice as many."""
    norms = problem.row_norms.ravel()
    ids = problem.ids
    ids = ids[norms[ids] > 0]
    support = base.ids[(base.lam > 0) & (norms[base.ids] > 0)]
    most = max(FEW, 2 * len(support))
    if len(ids) <= most:
        return ids
    depth = (problem.margins(base.direction).ravel()[ids] - problem.rhs.ravel()[ids]) / norms[ids]
    near = ids[np.argpartition(depth, most)[:most]]
    return np.union1d(near, support)


def _bounds(problem: RowProblem, norm: Norm, ids: Index, lam: Array, margins: Array, W: Array) -> tuple[float, bool]:
    """Gap over all rows or, if that is more, by how much a row with b = 0 is missed; and whether one is."""
    on, zero = problem.rhs > 0, problem.live & (problem.rhs == 0)
    smallest = float((margins[on] / problem.rhs[on]).min())
    depth = missed_share(margins[zero], problem.row_norms[zero] * np.linalg.norm(W))
    value, combined = float(lam @ problem.rhs.ravel()[ids]), dual_norm_of(problem.combine(ids, lam), norm)
    return max(depth, relative_gap(value, combined, smallest, norm_of(W, norm), 1)), depth > MISSED


def _solve_working(
    problem: RowProblem, norm: Norm, ids: Index, start: tuple[Array, Index, Array], rough: float
) -> tuple[Array, Array] | None:
    """W of the direction's shape with smallest row 1 and multipliers (m,) of rows ``ids``, in the original units."""
    norms = problem.row_norms.ravel()[ids]
    b = problem.rhs.ravel()[ids] / norms
    top = float(b.max())
    b = b / top
    W, lam = start[0] / top, np.zeros(len(ids))
    lam[np.isin(ids, start[1])] = start[2][np.isin(start[1], ids)]
    lam = lam * norms
    lam = lam / max(float(lam.max()), 1e-300)
    found = entry_of(norm).solve_working(WorkingRows(problem, ids, norms, b, W, lam, rough))
    if found is None:
        return None
    W, lam = found
    return W.reshape(problem.shape) * top, lam / norms
