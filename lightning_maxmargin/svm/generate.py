"""Constraint generation: solve on few rows, evaluate all of them with one product, add the worst, stop on the gap.

One loop for rows in memory, in blocks and on other processes, in the Euclidean norm and in others: whoever holds the
rows is a :class:`RowHolder`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from lightning_maxmargin.svm.certificate import relative_gap
from lightning_maxmargin.svm.certify import rounding, worst_miss
from lightning_maxmargin.svm.newton import likely_active
from lightning_maxmargin.svm.qp.working import SmallResult, solve_small
from lightning_maxmargin.svm.rows import Array, Index, RowProblem

Mask = npt.NDArray[np.bool_]
Working = TypeVar("Working")
MAX_ROUNDS = 60
# Rough answers suffice until the gap is below this.
ROUGH_TOLERANCE = 1e-3
# Gap from which on answers are exact.
EXACT_BELOW_GAP = 0.1
# Rows whose margin is this many times the right-hand side are let go once there are many.
NEAR_MARGIN_RATIO = 1.5
# Up to this many numbers DAQP takes all rows in less time than a second evaluation of them.
MAX_NUMBERS_AT_ONCE = 20_000
# Working rows that are always kept, and the most that are added at once, for up to so many dimensions.
MIN_KEPT_ROWS, MAX_ADDED_ROWS = 1_000, 1_500
# Up to so many all rows are worked with, if they are not many more than the dimensions.
MAX_ROWS_AT_ONCE = 3_000


@dataclass(frozen=True)
class Answer:
    """Of the working rows: multipliers lam and their direction, or where ``infeasible`` a Farkas vector lam."""

    direction: Array
    lam: Array
    infeasible: bool = False


@dataclass(frozen=True)
class Evaluation(Generic[Working]):
    """Of all rows: the gap with the share that rows b = 0 are missed by, the worst missed ones, whether to stop.

    smallest: min(row w / b); margins: (n, T) where they are in memory.
    """

    gap: float
    fresh: Working
    done: bool
    smallest: float
    margins: Array | None = None


class RowHolder(Protocol[Working]):
    """Who holds the rows, and solves the working ones."""

    def first(self) -> Working:
        """The rows to begin with."""
        ...

    def solve(self, working: Working) -> Answer | None:
        """The answer on the working rows; None where there is none and the best so far must do."""
        ...

    def evaluate(self, working: Working, answer: Answer) -> Evaluation[Working]:
        """One pass over all rows."""
        ...

    def grow(self, working: Working, answer: Answer, evaluation: Evaluation[Working]) -> Working:
        """The working rows of the next round: with the missed ones, and without some that no longer matter."""
        ...


@dataclass(frozen=True)
class Generated(Generic[Working]):
    """The best round's working rows, answer and evaluation (None where infeasible), and how many rounds there were."""

    working: Working
    answer: Answer
    evaluation: Evaluation[Working] | None
    rounds: int


def rounds_of(holder: RowHolder[Working]) -> Generated[Working] | None:
    """The rounds of constraint generation; None where not even the first has an answer."""
    working, best, at = holder.first(), None, 0
    for at in range(1, MAX_ROUNDS + 1):
        answer = holder.solve(working)
        if answer is None:
            break
        if answer.infeasible:
            return Generated(working, answer, None, at)
        seen = holder.evaluate(working, answer)
        before = np.inf if best is None or best.evaluation is None else best.evaluation.gap
        if best is None or seen.gap <= before or not np.isfinite(before):
            best = Generated(working, answer, seen, at)
        if seen.done:
            break
        working = holder.grow(working, answer, seen)
    return None if best is None else replace(best, rounds=at)


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
    rounds: int
    margins: Array | None = None
    scaled: bool = False
    note: str = ""


class EuclideanRounds:
    """What rounds in the Euclidean norm remember: how near the last was, and which rows are thought active."""

    def __init__(self, active: Mask | None = None) -> None:
        self.active, self.gap, self.rough = active, np.inf, False

    def answer_of(self, problem: RowProblem, ids: Index, everything: bool) -> Answer:
        """The working rows ``ids`` of a problem, roughly while the gap is large."""
        rough = self.gap > EXACT_BELOW_GAP and not everything
        small: SmallResult = solve_small(problem, ids, self.active, ROUGH_TOLERANCE if rough else 1e-12)
        if small.farkas is not None:
            return Answer(np.zeros(problem.shape), small.farkas, True)
        self.rough = not small.finished
        return Answer(small.direction, small.lam)


class MemoryRows(EuclideanRounds):
    """Rows in memory; working rows are their numbers.

    Args: problem, with at least one row b > 0; warm, rows to start from; was, which of them were active (all if None).
    """

    def __init__(self, problem: RowProblem, warm: Index | None = None, was: Mask | None = None) -> None:
        super().__init__()
        self.problem, self.warm, self.was = problem, warm, was
        self.count = int(problem.live.sum())

    def first(self) -> Index:
        working = self._first_rows()
        positive = self.problem.rhs.ravel() > 0
        if not positive[working].any():
            working = np.union1d(working, np.flatnonzero(positive)[:1])
        if self.warm is not None:
            known = np.zeros(self.problem.live.size, bool)
            known[self.warm if self.was is None else self.warm[self.was]] = True
            self.active = known[working]
        return working

    def _first_rows(self) -> Index:
        problem, ids = self.problem, self.problem.ids
        few = len(ids) <= min(300 + 2 * problem.dim, MAX_ROWS_AT_ONCE)
        if few or len(ids) * problem.dim <= MAX_NUMBERS_AT_ONCE:
            return ids
        if self.warm is not None and len(self.warm):
            return np.union1d(self.warm, ids[problem.row_norms.ravel()[ids] == 0])
        start = problem.mean_row()
        return worst_rows(problem, problem.margins(start), np.zeros(0, np.int64), np.inf, start)

    def solve(self, working: Index) -> Answer:
        return self.answer_of(self.problem, working, len(working) == self.count)

    def evaluate(self, working: Index, answer: Answer) -> Evaluation[Index]:
        margins = self.problem.margins(answer.direction)
        self.gap = bounds(self.problem, working, answer.lam, margins, answer.direction)
        fresh = worst_rows(self.problem, margins, working, 0.0, answer.direction)
        done = (len(fresh) == 0 and not self.rough) or len(working) == self.count
        return Evaluation(self.gap, fresh, done, smallest_of(self.problem, margins), margins)

    def grow(self, working: Index, answer: Answer, evaluation: Evaluation[Index]) -> Index:
        problem, fresh, lam = self.problem, evaluation.fresh, answer.lam
        assert evaluation.margins is not None
        margins, norms = evaluation.margins.ravel()[working], problem.row_norms.ravel()[working]
        keep = worth_keeping(margins, problem.rhs.ravel()[working], norms, lam, len(fresh), problem.dim)
        # With more dimensions than rows most of the missed rows will be active.
        likely = np.full(len(fresh), problem.dim > len(working) + len(fresh))
        grown = np.concatenate([working[keep], fresh])
        order = np.argsort(grown)
        self.active = None if self.rough else np.concatenate([lam[keep] > 0, likely])[order]
        return grown[order]


def generate(problem: RowProblem, warm: Index | None = None, was: Mask | None = None) -> Outcome:
    """Solve ``problem`` (at least one row with b > 0) in the Euclidean norm; arguments as :class:`MemoryRows`."""
    likely = likely_active(problem) if warm is None else None
    warm, was = (warm, was) if likely is None else likely
    found = rounds_of(MemoryRows(problem, warm, was))
    assert found is not None
    answer = found.answer
    if found.evaluation is None:
        return Outcome(found.working, answer.lam, answer.direction, True, found.rounds)
    margins = found.evaluation.margins
    return Outcome(found.working, answer.lam, answer.direction, False, found.rounds, margins)


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
    most = max(MIN_KEPT_ROWS if np.isfinite(below) else first, min(problem.dim, MAX_ADDED_ROWS))
    if len(ids) > most:
        norms = problem.row_norms.ravel()[ids]
        depth = short.ravel()[ids] / np.where(norms > 0, norms, 1e-300)
        ids = ids[np.argpartition(depth, most)[:most]]
    return np.sort(ids)


def smallest_of(problem: RowProblem, margins: Array) -> float:
    """The smallest margin over its right-hand side, of rows with b > 0."""
    on = problem.positive
    return float(np.divide(margins, problem.rhs, out=np.full(on.shape, np.inf), where=on).min())


def bounds(problem: RowProblem, ids: Index, lam: Array, margins: Array, p: Array) -> float:
    """Gap of the whole problem, the rows bounding from above and the multipliers from below, and the most that a row
    with b = 0 is missed by: leaving those out made a round that misses them the best in 7 of 45 rate-coupled
    problems of (300, 32, 128), (200, 64, 192) and (400, 32, 96), which then ended unverified."""
    smallest, length = smallest_of(problem, margins), float(np.linalg.norm(p))
    combined = float(np.linalg.norm(problem.combine(ids, lam)))
    gap = relative_gap(float(lam @ problem.rhs.ravel()[ids]), combined, smallest, length)
    return gap + worst_miss(problem, margins, length)


def worth_keeping(margins: Array, rhs: Array, norms: Array, lam: Array, fresh: int, dim: int) -> Mask:
    """Which working rows: all until there are many, then those near the margin and those with weight."""
    if len(lam) + fresh <= max(MIN_KEPT_ROWS, min(dim, MAX_ADDED_ROWS)):
        return np.ones(len(lam), bool)
    return np.asarray((margins < NEAR_MARGIN_RATIO * rhs + 1e-12 * norms) | (lam > 1e-3 * lam.max()))
