"""What an earlier answer is good for: being the answer again, rows to start from, or nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_maxmargin.svm.certificate import relative_gap
from lightning_maxmargin.svm.doubles import to_array
from lightning_maxmargin.svm.generate import MAX_NUMBERS_AT_ONCE, Outcome, bounds, smallest_of
from lightning_maxmargin.svm.proofs import residual
from lightning_maxmargin.svm.qp.centre import combined_to_zero
from lightning_maxmargin.svm.qp.farkas import MAX_EXPLICIT_NUMBERS, accept, mended
from lightning_maxmargin.svm.rows import Array, Index, RowProblem
from lightning_maxmargin.svm.solution import Solution

# An earlier answer whose gap on the new rows is below this is the answer; a certificate allows 1e-8.
SAME_ANSWER_GAP = 1e-12
# Rows up to this many times as far above the old support as its own margins spread are taken in.
SPREADS_TAKEN_IN = 3.0
# Keys moved by 1 % spread the margins of the support by .005 to .03, by 30 % .15: there a cold start takes .9 of that.
MAX_SPREAD = 0.1
# An earlier proof that combines the new rows to more than this of their weight is none near them.
MAX_RESIDUAL = 0.1
# So many prove 1,200 to 5,000 labels in 40 to 384 dimensions infeasible, at random or with a signal, as many more do.
UNDECIDED_PER_DIMENSION = 4


@dataclass(frozen=True)
class Start:
    """``answer``, still to be certified, or ``rows`` to start from and which of them were ``active``."""

    rows: Index
    active: npt.NDArray[np.bool_]
    answer: Outcome | None = None


def begin(problem: RowProblem, warm: Solution) -> Start | None:
    """One product of all keys with the earlier direction tells what it is good for; None for nothing."""
    support = _support(problem, warm)
    if support is None:
        return None
    p = to_array(warm.direction, "direction")
    b = problem.rhs.ravel()[support]
    ratio = problem.exact_margins(p, support)[b > 0] / b[b > 0]
    # At the old optimum all are equal. Where more than a tenth have lost a quarter, starting cold is as fast.
    middle = float(np.partition(ratio, len(ratio) // 2)[len(ratio) // 2]) if len(ratio) else 0.0
    if not (0 < middle < np.inf and (ratio >= 0.75 * middle).mean() >= 0.9):
        return None
    margins = problem.margins(p)
    answer = _again(problem, warm, p, margins)
    if answer is not None:
        return Start(support, np.ones(len(support), bool), answer)
    apart = np.sort(np.abs(ratio / middle - 1))
    spread = float(apart[len(apart) * 9 // 10])
    return None if spread > MAX_SPREAD else _near(problem, support, margins, middle * (1 + SPREADS_TAKEN_IN * spread))


def proof_at_hand(problem: RowProblem, warm: Solution | None) -> Outcome | None:
    """A proof that no direction meets the rows: on the rows of an earlier one, or on a few of the labels.

    An analytic centre of these rows, however far their tokens have moved: of 3,000 labels in 384 dimensions, 7 % of
    which had changed, .06 s, of three classes .6, where constraint generation takes .32 and 9.2. Without an earlier
    proof the labels that the mean row decides least are tried, for about as long; where a direction meets them, that
    was .02 s of .38. Few rows are refuted anew, in less time than it takes to tell.
    """
    if problem.extreme or problem.is_small(MAX_NUMBERS_AT_ONCE):
        return None
    found = None
    if warm is not None and warm.infeasible and tuple(warm.dual.shape) == problem.live.shape:
        u = np.where(problem.live, to_array(warm.dual, "dual"), 0.0).ravel()
        ids = np.flatnonzero(u > 0)
        found = _centred(problem, ids)
        # Of few rows more than their span not all may be in a proof; the earlier one's entries tell which.
        if found is None and len(ids) and np.isfinite(u).all() and residual(problem, ids, u[ids]) <= MAX_RESIDUAL:
            found = mended(problem, ids, u[ids])
    # Keys that merge are of an attention problem, which few fail to meet.
    if found is None and not problem.merges and not (warm is not None and warm.certified):
        found = _centred(problem, _undecided(problem))
    return None if found is None else Outcome(found[0], found[1], np.zeros(problem.shape), True, 0)


def _undecided(problem: RowProblem) -> Index:
    """The rows that the mean row decides least, a few times as many as there are dimensions; none of so few samples
    that a direction meets them whatever their labels (Cover 1965). Those that it misses most its opposite meets."""
    ids, most = problem.ids, UNDECIDED_PER_DIMENSION * problem.dim
    if len(problem.live) <= 2 * problem.dim or len(ids) <= most:
        return ids if len(problem.live) > 2 * problem.dim else ids[:0]
    norms = problem.row_norms.ravel()[ids]
    depth = np.abs(problem.margins(problem.mean_row()).ravel()[ids]) / np.where(norms > 0, norms, 1e-300)
    return np.sort(ids[np.argpartition(depth, most)[:most]])


def _centred(problem: RowProblem, ids: Index) -> tuple[Index, Array] | None:
    """A Farkas vector on all of these rows, which are more than their dimensions, or None."""
    norms = problem.row_norms.ravel()[ids]
    ids, norms = ids[norms > 0], norms[norms > 0]
    if not problem.dim < len(ids) or len(ids) * problem.dim > MAX_EXPLICIT_NUMBERS:
        return None
    u = combined_to_zero(problem.rows(ids) / norms[:, None])
    found = None if u is None else accept(problem, ids, u / norms)
    return None if found is None else (ids, found)


def _support(problem: RowProblem, warm: Solution) -> Index | None:
    """Numbers of the old support rows, while most of them are rows still."""
    if tuple(warm.direction.shape) != problem.shape:
        return None
    support = to_array(warm.support, "support").astype(np.int64)
    n, T = problem.live.shape
    if support.ndim != 2 or not len(support) or warm.infeasible:
        return None
    inside = ((support >= 0) & (support < [n, T])).all(1)
    ids = support[inside, 0] * T + support[inside, 1]
    known = np.zeros(n * T, bool)
    known[ids] = True
    ids = np.flatnonzero(known & problem.live.ravel())
    return None if len(ids) == 0 or len(ids) < 0.5 * len(support) else ids


def _again(problem: RowProblem, warm: Solution, p: Array, margins: Array) -> Outcome | None:
    """The earlier answer where its gap on these rows is that of a fresh one."""
    if not warm.certified or warm.norm != "l2" or tuple(warm.dual.shape) != problem.live.shape:
        return None
    dual = to_array(warm.dual, "dual").ravel()
    ids = np.flatnonzero(dual)
    lam = dual[ids]
    if not np.isfinite(lam).all() or (lam < 0).any() or not problem.live.ravel()[ids].all():
        return None
    smallest, length = smallest_of(problem, margins), float(np.linalg.norm(p))
    value = float(lam @ problem.rhs.ravel()[ids])
    # Were lam to combine the rows to p still, which costs no pass over rows to ask; only then their combination.
    if not relative_gap(value, length * smallest, smallest, length) <= SAME_ANSWER_GAP:
        return None
    if not bounds(problem, ids, lam, margins, p) <= SAME_ANSWER_GAP:
        return None
    return Outcome(ids, lam, p, False, 0, margins)


def _near(problem: RowProblem, support: Index, margins: Array, below: float) -> Start:
    """The old support and the rows that came near it, nearest first, not too many."""
    near = margins < below * problem.rhs
    ids = np.flatnonzero(near)
    most = max(1000, min(problem.dim, 1500))
    if len(ids) > most:
        depth = margins.ravel()[ids] / problem.rhs.ravel()[ids]
        near = np.zeros(problem.live.shape, bool)
        near.ravel()[ids[np.argpartition(depth, most)[:most]]] = True
    # Rows of norm 0 that ask for more prove that there is no direction.
    near |= problem.live & (problem.row_norms == 0)
    active = np.zeros(near.size, bool)
    active[support] = True
    rows = np.flatnonzero(near.ravel() | active)
    return Start(rows, active[rows])
