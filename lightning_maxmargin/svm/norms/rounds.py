"""Other norms by constraint generation, from the l2 solution and on the rows that matter, until the gap closes.

Which rows can be met does not depend on the norm, so that the l2 solver's verdict and Farkas vector stand, and its
solution is where the others start.
"""

from __future__ import annotations

import numpy as np

from lightning_maxmargin.svm.certificate import relative_gap
from lightning_maxmargin.svm.certify import worst_miss
from lightning_maxmargin.svm.generate import (
    MAX_ROUNDS,
    ROUGH_TOLERANCE,
    Answer,
    Evaluation,
    Outcome,
    rounds_of,
    smallest_of,
    worst_rows,
)
from lightning_maxmargin.svm.norms.names import Norm, dual_norm_of, norm_of
from lightning_maxmargin.svm.norms.registry import WorkingRows, entry_of
from lightning_maxmargin.svm.rows import Array, Index, RowProblem

# Up to this many rows there is nothing to gain by leaving some out.
MIN_WORKING_ROWS = 256
# Gap over all rows at which missed ones no longer matter.
CLOSED_GAP = 3e-10
# A row with b = 0 is missed by more than rounding.
MISSED_SHARE = 1e-10


class NormRounds:
    """Rows in memory in another norm; working rows are their numbers.

    Args: problem, feasible, with at least one row b > 0; norm, not l2; base, the l2 outcome.
    """

    def __init__(self, problem: RowProblem, norm: Norm, base: Outcome) -> None:
        self.problem, self.norm, self.base = problem, norm, base
        self.count = int((problem.row_norms.ravel()[problem.ids] > 0).sum())
        self.round, self.rough = 0, False

    def first(self) -> Index:
        """All of few rows; else the support of the l2 solution and the next nearest rows, about twice as many."""
        problem, base = self.problem, self.base
        norms = problem.row_norms.ravel()
        ids = problem.ids[norms[problem.ids] > 0]
        support = base.ids[(base.lam > 0) & (norms[base.ids] > 0)]
        most = max(MIN_WORKING_ROWS, 2 * len(support))
        if len(ids) > most:
            depth = (problem.margins(base.direction).ravel()[ids] - problem.rhs.ravel()[ids]) / norms[ids]
            ids = np.union1d(ids[np.argpartition(depth, most)[:most]], support)
        self.rough = len(ids) < self.count
        return ids

    def solve(self, working: Index) -> Answer | None:
        self.round += 1
        start = (self.base.direction, self.base.ids, self.base.lam)
        # On rows of very different size the powers of a step may overflow; the certificate judges what comes back.
        with np.errstate(all="ignore"):
            found = _solve_working(self.problem, self.norm, working, start, ROUGH_TOLERANCE if self.rough else 0.0)
        return None if found is None else Answer(*found)

    def evaluate(self, working: Index, answer: Answer) -> Evaluation[Index]:
        """The gap over all rows or, if that is more, by how much a row with b = 0 is missed."""
        problem, W = self.problem, answer.direction
        margins = problem.margins(W)
        missed = worst_miss(problem, margins, float(np.linalg.norm(W)))
        value = float(answer.lam @ problem.rhs.ravel()[working])
        combined = dual_norm_of(problem.combine(working, answer.lam), self.norm)
        smallest = smallest_of(problem, margins)
        gap = max(missed, abs(relative_gap(value, combined, smallest, norm_of(W, self.norm), 1)))
        fresh = worst_rows(problem, margins, working, 0.0, W)
        fresh = fresh[problem.row_norms.ravel()[fresh] > 0]
        closed = len(fresh) == 0 or len(working) == self.count or (gap <= CLOSED_GAP and missed <= MISSED_SHARE)
        return Evaluation(gap, fresh, closed and not self.rough, smallest)

    def grow(self, working: Index, answer: Answer, evaluation: Evaluation[Index]) -> Index:
        # A rough answer that misses no row says which rows count: the next is the last or nearly so.
        self.rough = self.rough and len(evaluation.fresh) > 0 and self.round < MAX_ROUNDS // 2
        return np.union1d(working, evaluation.fresh)


def generate_norm(problem: RowProblem, norm: Norm, base: Outcome) -> Outcome:
    """min ||W|| in ``norm``, not l2, from the l2 outcome of a problem with at least one row b > 0.

    An l2 outcome that does not meet the rows, so that nothing is known, is handed back as it is.
    """
    if not smallest_of(problem, problem.margins(base.direction)) > 0:
        return base
    found = rounds_of(NormRounds(problem, norm, base))
    working, lam, W = (base.ids, base.lam, base.direction)
    if found is not None:
        working, lam, W = found.working, found.answer.lam, found.answer.direction
    # Of dual norm 1, so that b'lam is the bound on the norm itself.
    size = dual_norm_of(problem.combine(working, lam), norm)
    lam = lam / size if 0 < size < np.inf else lam
    return Outcome(working, lam, W, False, base.rounds + (0 if found is None else found.rounds))


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
