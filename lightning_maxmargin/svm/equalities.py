"""Rows of which some are equalities: ``min ||w||  subject to  E w = e,  A w >= b``, any signs in e and b.

The equalities leave w = w_e + x: w_e their shortest solution, x orthogonal to their span. On the rows A projected
there, x is the shortest with A x >= b' = b - A w_e. Where some b' < 0 one more unknown tau >= 1 takes their place,
``min ||(x, tau)|| s.t. A x - b' tau >= 0``: scaling shows that tau is 1 at the optimum, so that x is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lightning_maxmargin.svm.certificate import NOTHING, TOLERANCES, Certificate, is_certified, relative_gap
from lightning_maxmargin.svm.certify import in_rationals
from lightning_maxmargin.svm.generate import generate
from lightning_maxmargin.svm.norms.names import Norm, dual_norm_of, norm_of
from lightning_maxmargin.svm.proofs import proves_contradiction
from lightning_maxmargin.svm.rational import (
    LARGEST_POWER,
    RATIONAL_NUMBERS,
    RATIONAL_RANK,
    RationalRows,
    floats,
    rational_rows,
    shifted,
    solve_rational,
)
from lightning_maxmargin.svm.rows import EPS, LARGEST, SMALLEST, Array, RowProblem

Mask = npt.NDArray[np.bool_]
# Singular values of the unit equality rows below this share of the largest, and what is left of an inequality's unit
# row outside their span, count as zero.
RANK = 1e-11
# Equalities that miss by more than this share of their right-hand sides contradict each other.
CONSISTENT = 1e-9


@dataclass(frozen=True)
class EqualityRows:
    """rows (m, d), rhs (m,), equal (m,): true where <w, row> = rhs, false where <w, row> >= rhs."""

    rows: Array
    rhs: Array
    equal: Mask

    def rational(self) -> RationalRows:
        """The rows and right-hand sides without rounding."""
        return rational_rows(self.rows, self.rhs, self.equal)


@dataclass(frozen=True)
class EqualityAnswer:
    """w (d,) and dual (m,), >= 0 on inequalities, w = sum dual row; or the Farkas vector where ``infeasible``."""

    w: Array
    dual: Array
    infeasible: bool
    rounds: int


class _Span:
    """The span of the unit equality rows: rank decided, bases U of their combinations, V of the span, N of the rest."""

    def __init__(self, E: Array, e: Array) -> None:
        self.E, self.e = E, e
        U, size, V = np.linalg.svd(E, full_matrices=False)
        rank = int((size > RANK * size[0]).sum()) if len(size) else 0
        self.U, self.size, self.V = U[:, :rank], size[:rank], V[:rank]
        free = np.linalg.qr(self.V.T, mode="complete")[0][:, rank:].T
        # Where nothing is free, rows of one coordinate, 0.
        self.N = free if len(free) else np.zeros((1, E.shape[1]))

    def shortest(self) -> Array:
        """The shortest w with E w = e, as near as that goes."""
        w = np.zeros(self.E.shape[1])
        for _ in range(2):
            w = w + (self.U.T @ (self.e - self.E @ w) / self.size) @ self.V
        return w

    def outside(self, x: Array) -> Array:
        """x (..., d) without its part in the span; twice, for the rounding of the first."""
        for _ in range(2):
            x = x - (x @ self.V.T) @ self.V
        return x

    def weights(self, x: Array) -> Array:
        """nu with E'nu = x for an x in the span."""
        nu = np.zeros(len(self.E))
        for _ in range(2):
            nu = nu + self.U @ (self.V @ (x - nu @ self.E) / self.size)
        return nu


def solve_equalities(problem: EqualityRows) -> EqualityAnswer:
    """The shortest w that meets the rows; where its certificate fails and the rows are few, in rational arithmetic.

    Finite at any scale: sizes that float64 cannot square leave zeros, which are certified as nothing.
    """
    m, d = problem.rows.shape
    with np.errstate(all="ignore"):
        try:
            answer = _in_floats(problem)
        except np.linalg.LinAlgError:
            answer = EqualityAnswer(np.zeros(d), np.zeros(m), False, 0)
        if not (np.isfinite(answer.w).all() and np.isfinite(answer.dual).all()):
            answer = EqualityAnswer(np.zeros(d), np.zeros(m), False, answer.rounds)
        found = certify_equalities(problem, answer)
    if not (found.certified or found.refuted) and m * d <= RATIONAL_NUMBERS and min(m, d) <= RATIONAL_RANK:
        return _in_rationals(problem)
    return answer


def _in_rationals(problem: EqualityRows) -> EqualityAnswer:
    rows = problem.rational()
    exact = solve_rational(rows)
    dual, power = floats(rows.multipliers(exact.lam))
    if exact.w is None:
        value = float(dual @ problem.rhs)
        dual = dual / value if 1e-300 < value < np.inf else dual
        return EqualityAnswer(np.zeros(problem.rows.shape[1]), dual, True, exact.steps)
    w, shift = floats(exact.w)
    # Past the end of float64 the largest power of two it holds; the certificate judges what that is worth.
    w = np.ldexp(w, min(shift, LARGEST_POWER - 1))
    return EqualityAnswer(w, shifted(dual, power), False, exact.steps)


def _in_floats(problem: EqualityRows) -> EqualityAnswer:
    norms = np.linalg.norm(problem.rows, axis=1)
    scale = np.where(norms > 0, norms, 1.0)
    rows, rhs, equal = problem.rows / scale[:, None], problem.rhs / scale, problem.equal
    span = _Span(rows[equal], rhs[equal])
    dual = np.zeros(len(rhs))
    w = span.shortest()
    rest = span.e - span.E @ w
    if float(np.linalg.norm(rest)) > CONSISTENT * float(np.linalg.norm(span.e)):
        rest = rest - span.U @ (span.U.T @ rest)
        dual[equal] = rest / float(span.e @ rest)
        return EqualityAnswer(np.zeros_like(w), dual / scale, True, 0)
    A, b = rows[~equal], rhs[~equal]
    outside = span.outside(A)
    outside[np.linalg.norm(outside, axis=1) <= RANK] = 0.0
    need = b - A @ w
    need[np.abs(need) <= 1e-15 * np.abs(b)] = 0.0
    # In coordinates of what the equalities leave free: rows that lie in a subspace prove nothing there.
    x, lam, infeasible, rounds = _shortest_above(outside @ span.N.T, need)
    dual[~equal] = lam
    x = x @ span.N
    goal = -(lam @ A) if infeasible else w + x - lam @ A
    dual[equal] = span.weights(goal)
    if infeasible:
        value = float(dual @ rhs)
        dual = dual / value if value > 0 else dual
    return EqualityAnswer(np.zeros_like(w) if infeasible else w + x, dual / scale, infeasible, rounds)


def _shortest_above(A: Array, b: Array) -> tuple[Array, Array, bool, int]:
    """argmin ||x|| s.t. A x >= b and its multipliers, or a Farkas vector and True."""
    nothing = np.zeros(A.shape[1]), np.zeros(len(b)), False, 0
    if not (b > 0).any():
        return nothing
    if (b >= 0).all():
        outcome = generate(RowProblem.explicit(A, b))
        lam = np.zeros(len(b))
        lam[outcome.ids // 2] = outcome.lam
        return outcome.direction, lam, outcome.infeasible, outcome.rounds
    top = float(np.abs(b).max())
    lifted = np.vstack([np.column_stack([A, -b / top]), np.append(np.zeros(A.shape[1]), 1.0)])
    outcome = generate(RowProblem.explicit(lifted, np.append(np.zeros(len(b)), 1.0)))
    lam = np.zeros(len(b) + 1)
    lam[outcome.ids // 2] = outcome.lam
    tau = 1.0 if outcome.infeasible or outcome.direction[-1] <= 0 else float(outcome.direction[-1])
    size = 1.0 if outcome.infeasible else top / tau
    return outcome.direction[:-1] * size, lam[:-1] * size, outcome.infeasible, outcome.rounds


def _out_of_range(problem: EqualityRows, answer: EqualityAnswer) -> bool:
    """Whether sizes under- or overflow in squares or products, so that float64 certifies nothing."""
    rows = problem.rows[problem.rows.any(axis=1)]
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(rows, axis=1)
    asked, length = np.abs(problem.rhs[problem.rhs != 0]), np.abs(answer.w[answer.w != 0])
    sizes = np.concatenate([norms, asked, length.max(keepdims=True) if len(length) else length])
    return not bool(((sizes >= SMALLEST) & (sizes <= LARGEST)).all())


def _certified_exactly(problem: EqualityRows, answer: EqualityAnswer, norm: Norm) -> Certificate:
    nothing = replace(NOTHING, gap=np.inf if answer.infeasible else 1.0)
    dual, w = answer.dual, answer.w
    if norm != "l2" or problem.rows.size > TOLERANCES.rational_numbers or (dual[~problem.equal] < 0).any():
        return nothing
    if not (np.isfinite(dual).all() and np.isfinite(w).all()):
        return nothing
    if answer.infeasible:
        proved = proves_contradiction(problem.rows, problem.rhs, problem.equal, dual)
        return Certificate(np.inf, 0.0, refuted=True) if proved else nothing
    gap, violation, _ = in_rationals(problem.rational(), w, dual, scale_free=False)
    return Certificate(gap if w.any() else 0.0, violation)


def certify_equalities(
    problem: EqualityRows, answer: EqualityAnswer, norm: Norm = "l2", shape: tuple[int, ...] | None = None
) -> Certificate:
    r"""The certificate of any answer, from the original rows alone.

    ``gap = 1 - (rhs'dual)^2 / (||sum dual row||^2 ||w||^2)`` (the best scaling of the dual, which any right-hand side
    allows), violation = the most that a row misses its right-hand side by, relative to ``||row|| ||w|| + |rhs|``.
    Infeasible: ``||sum dual row||`` relative to ``sum |dual| ||row||``, with rhs'dual > 0 proved; gap is then inf.
    In another norm of directions of this shape without the squares, and with the dual norm of the sum.
    """
    dual, w, rhs = answer.dual, answer.w, problem.rhs
    if _out_of_range(problem, answer):
        return _certified_exactly(problem, answer, norm)
    combined, value = float(np.linalg.norm(dual @ problem.rows)), float(dual @ rhs)
    norms = np.linalg.norm(problem.rows, axis=1)
    signs = bool((dual[~problem.equal] >= 0).all()) and bool(np.isfinite(dual).all() and np.isfinite(w).all())
    if answer.infeasible:
        weight = float(np.abs(dual) @ norms)
        violation = combined / weight if weight > 0 else float(combined > 0)
        good = signs and violation <= TOLERANCES.farkas
        good = good and proves_contradiction(problem.rows, rhs, problem.equal, dual)
        return Certificate(np.inf, violation, signs, refuted=good)
    length = float(np.linalg.norm(w))
    missed = rhs - problem.rows @ w
    missed = np.where(problem.equal, np.abs(missed), np.maximum(missed, 0.0))
    size = norms * length + np.abs(rhs)
    violation = float(np.divide(missed, size, out=np.zeros_like(size), where=size > 0).max(initial=0.0))
    if norm != "l2":
        combined = dual_norm_of((dual @ problem.rows).reshape(shape or -1), norm)
        length = norm_of(w.reshape(shape or -1), norm)
    # Rows within the violation that is allowed count as met.
    gap = 0.0 if length == 0 else min(relative_gap(value, combined, 1.0, length, 2 if norm == "l2" else 1), 1.0)
    # A sum whose Euclidean rounding is known may be this many times as far off in another norm.
    entries = 1.0 if norm == "l2" else float(len(w)) ** 0.5
    lost = entries * (len(dual) + len(w) + 12) * EPS * (float(np.abs(dual) @ norms) / max(combined, 1e-300))
    lost += (len(dual) + 12) * EPS * float(np.abs(dual) @ np.abs(rhs)) / max(value, 1e-300)
    doubtful = length > 0 and not is_certified(abs(gap) + 2 * lost, violation, signs)
    if doubtful and is_certified(gap, violation, signs):
        if norm != "l2" or problem.rows.size > TOLERANCES.rational_numbers:
            return Certificate(gap, violation, sound=False)
        gap = in_rationals(problem.rational(), w, dual, scale_free=False)[0]
    return Certificate(gap, violation, signs)
