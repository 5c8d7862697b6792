"""Solving one limit problem: the answer by constraint generation, its certificate, and a second opinion on few rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.certificate import NOTHING, TOLERANCES, Certificate
from lightning_maxmargin.svm.certify import certificate
from lightning_maxmargin.svm.generate import Outcome, generate, smallest_of
from lightning_maxmargin.svm.norms.names import Norm, is_unique, norm_of
from lightning_maxmargin.svm.norms.rounds import generate_norm
from lightning_maxmargin.svm.proofs import margin_at_least, meets_rows, refuted, what_is_known
from lightning_maxmargin.svm.rational import (
    LARGEST_POWER,
    RATIONAL_NUMBERS,
    RATIONAL_RANK,
    SMALLEST_POWER,
    floats,
    shifted,
    solve_rational,
)
from lightning_maxmargin.svm.rows import Array, RowProblem
from lightning_maxmargin.svm.solution import Solution, answered, infeasible, nothing_to_separate, withdrawn
from lightning_maxmargin.svm.threads import one_thread
from lightning_maxmargin.svm.warm import begin, proof_at_hand

# A smallest row this near to 1 is 1 up to the rounding of margins; scaling would cost one more product with all keys.
SCALED = 1e-13
# The certificate's own smallest row this far from 1 is worth another scaling.
SHARP = 1e-9


def solve_problem(
    problem: RowProblem, warm: Solution | None = None, goal: str = "meets the rows", norm: Norm = "l2"
) -> Solution:
    """Solve rows and right-hand sides in a checked norm; ``goal`` completes "no direction ..." in messages.

    Raises: InputError where sizes differ by so much that neither floating point nor, for many rows, rational arithmetic
        can tell.
    """
    if not (problem.rhs > 0).any():
        solution = nothing_to_separate(problem.shape, problem.live.shape, bool(problem.live.any()), problem.merged)
    elif problem.extreme:
        solution = _at_extremes(problem, warm, goal, norm)
    else:
        with one_thread():
            solution = _solve(problem, warm, goal, norm)
    return solution if norm == "l2" else solution.in_norm(norm, is_unique(norm))


def _solve(problem: RowProblem, warm: Solution | None, goal: str, norm: Norm) -> Solution:
    proved = proof_at_hand(problem, warm)
    if proved is not None:
        return _no_answer(problem, proved, goal)
    start = None if warm is None else begin(problem, warm)
    if start is not None and start.answer is not None and norm == "l2":
        found = _answer(problem, start.answer, goal, norm)
        if found.certified:
            return found
    outcome = generate(problem) if start is None else generate(problem, start.rows, start.active)
    if outcome.infeasible:
        return _no_answer(problem, outcome, goal)
    if norm == "l2":
        solution = _answer(problem, outcome, goal, norm)
        second = None if solution.certified else second_opinion(problem, outcome)
        if second is None:
            return solution
        if second.infeasible:
            return _no_answer(problem, second, goal)
        better = _answer(problem, second, goal, norm)
        return better if better.certified else replace(solution, message=better.message)
    if not meets_rows(problem, outcome.direction):
        outcome = second_opinion(problem, outcome) or outcome
        if outcome.infeasible:
            return _no_answer(problem, outcome, goal)
    return _answer(problem, generate_norm(problem, norm, outcome), goal, norm)


def _at_extremes(problem: RowProblem, warm: Solution | None, goal: str, norm: Norm) -> Solution:
    """Sizes that float64 cannot square: over a power of two, or where they differ by too much without rounding."""
    found = problem.normalised()
    if found is not None:
        scaled, rows, rhs = found
        return rescaled(problem, solve_problem(scaled, None, goal, norm), rows, rhs)
    answer = second_opinion(problem, None) if norm == "l2" else None
    if answer is None:
        raise InputError(
            "keys, queries or right-hand sides differ in size by more than float64 can square: rescale features or rows"
        )
    return _no_answer(problem, answer, goal) if answer.infeasible else _answer(problem, answer, goal, norm)


def rescaled(problem: RowProblem, solution: Solution, rows: int, rhs: int) -> Solution:
    """The Solution of ``problem``, whose rows are ``2^rows`` and right-hand sides ``2^rhs`` times those solved."""
    dual = shifted(solution.dual.numpy(), -rhs if solution.infeasible else _dual_power(solution, rows, rhs))
    if solution.infeasible:
        return replace(solution, dual=torch.from_numpy(dual))
    before, power = solution.direction.numpy(), rhs - rows
    within = min(power, LARGEST_POWER - int(np.frexp(np.abs(before).max(initial=0.0))[1]))
    direction = np.ldexp(before, within)
    with np.errstate(over="ignore"):
        margin = float(np.ldexp(solution.margin, -power))
    if within < power:
        past = f"; the direction is 2^{power - within} times as long, past the end of float64"
        solution = replace(solution, message=solution.message + past)
    if solution.certified and not np.array_equal(np.ldexp(direction, -within), before):
        # Numbers next to 0 have lost digits: few rows are judged once more as they are, without rounding.
        found = certificate(problem, direction, dual, solution.norm)
        if not found.certified or abs(found.smallest - 1) > TOLERANCES.violation:
            solution = withdrawn(solution, "the direction's small entries are below float64's range")
    return replace(solution, direction=torch.from_numpy(direction), dual=torch.from_numpy(dual), margin=margin)


def _dual_power(solution: Solution, rows: int, rhs: int) -> int:
    return rhs - 2 * rows if solution.norm == "l2" else -rows


def second_opinion(problem: RowProblem, outcome: Outcome | None) -> Outcome | None:
    """The answer in rational arithmetic, rounded at the end; None where the rows are too many for it."""
    if not problem.is_small(RATIONAL_NUMBERS) or min(problem.dim, int(problem.live.sum())) > RATIONAL_RANK:
        return None
    ids = problem.ids
    rows = problem.rational(ids)
    start: list[int] = []
    if outcome is not None and 0 < np.count_nonzero(outcome.lam > 0) <= problem.dim:
        start = np.flatnonzero(np.isin(ids, outcome.ids[outcome.lam > 0])).tolist()
    answer = solve_rational(rows, start)
    lam, exponent = floats(rows.multipliers(answer.lam))
    if answer.w is None:
        value = float(lam @ problem.rhs.ravel()[ids])
        lam = lam / value if 1e-300 < value < 1e300 else lam
        return Outcome(ids, lam, np.zeros(problem.shape), True, answer.steps)
    w, shift = floats(answer.w)
    within = min(max(shift, SMALLEST_POWER), LARGEST_POWER)
    size = f"of size 2^{-shift}" if abs(shift) > 900 else f"{1 / float(np.ldexp(np.linalg.norm(w), shift)):.3g}"
    note = f"separable with margin {size} in exact arithmetic, but float64 holds no direction that shows it"
    # A power of two off the multipliers, which no certificate minds, keeps them in float64.
    lam = shifted(lam, exponent + within - shift)
    w = np.ldexp(w, within).reshape(problem.shape)
    return Outcome(ids, lam, w, False, answer.steps, scaled=True, note=note)


def _no_answer(problem: RowProblem, outcome: Outcome, goal: str) -> Solution:
    dual = problem.spread(outcome.ids, outcome.lam)
    proof = refuted(problem, outcome.ids, outcome.lam)
    return infeasible(proof, problem.shape, dual, np.argwhere(dual > 0), goal, outcome.rounds, problem.merged)


def _answer(problem: RowProblem, outcome: Outcome, goal: str, norm: Norm) -> Solution:
    """The outcome scaled to smallest row 1, with its certificate."""
    with np.errstate(all="ignore"):
        margins = problem.margins(outcome.direction) if outcome.margins is None else outcome.margins
        smallest = smallest_of(problem, margins)
    scale = 1.0 if outcome.scaled or not smallest > 0 or abs(1 / smallest - 1) <= SCALED else 1 / smallest
    found = _judged(problem, outcome, scale, norm, margins if scale == 1 else None)
    off = abs(found.certificate.smallest - 1)
    if found.certificate.certified and off > SHARP and not outcome.scaled:
        # The margins that scaled it had lost digits which the certificate's have.
        found = _judged(problem, outcome, scale / found.certificate.smallest, norm, None)
        off = abs(found.certificate.smallest - 1)
    return found.solution(problem, outcome, goal, norm, off <= TOLERANCES.violation)


@dataclass(frozen=True)
class _Judged:
    """An outcome's direction and multipliers (n, T), scaled, with their margins and certificate."""

    direction: Array
    dual: Array
    margins: Array
    certificate: Certificate

    def solution(self, problem: RowProblem, outcome: Outcome, goal: str, norm: Norm, met: bool) -> Solution:
        """The Solution; ``met``: whether the smallest row is 1 to what a certificate allows."""
        p, certificate, on = self.direction, self.certificate, problem.rhs > 0
        certificate = replace(certificate, sound=certificate.sound and met)
        with np.errstate(all="ignore"):
            length = float(np.linalg.norm(p)) if not problem.extreme else norm_of(p, "l2")
            slack = self.margins - problem.rhs
            tight = problem.live & (slack <= TOLERANCES.tight * np.where(on, problem.rhs, problem.row_norms * length))
        good = certificate.certified
        nowhere = not good and not smallest_of(problem, self.margins) > 0
        known = outcome.note
        if not good and not known:
            known = what_is_known(margin_at_least(problem, p), problem, self.dual, goal, norm)
        return answered(
            NOTHING if nowhere else certificate,
            p,
            self.dual,
            np.argwhere(tight),
            margin=0.0 if nowhere or length == 0 else 1 / norm_of(p, norm),
            rounds=outcome.rounds,
            known=known,
            merged=problem.merged,
            unique=is_unique(norm),
        )


def _judged(problem: RowProblem, outcome: Outcome, scale: float, norm: Norm, margins: Array | None) -> _Judged:
    p, lam = outcome.direction * scale, outcome.lam * scale if norm == "l2" else outcome.lam
    if not (np.isfinite(p).all() and np.isfinite(lam).all()):
        p, lam = outcome.direction, outcome.lam
    dual = problem.spread(outcome.ids, lam)
    with np.errstate(all="ignore"):
        margins = problem.margins(p) if margins is None else margins
    return _Judged(p, dual, margins, certificate(problem, p, dual, norm, margins))
