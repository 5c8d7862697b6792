"""What a Solution claims, held against exact arithmetic on the very float64 numbers that were handed in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from tests.svm.exact_oracle import Exact, Floats, meets
from tests.svm.exact_rows import ExactProblem

VIOLATION = Fraction(1, 10**7)
# 1e-8, and what float64 may lose when it computes a gap.
GAP = Fraction(101, 10**10)
LARGEST = Fraction(float(np.finfo(np.float64).max))
NUMBER = r"([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)"
SEPARABLE = re.compile(f"separable with margin at least {NUMBER}")
NONE_BELOW = re.compile(f"no direction of norm below {NUMBER}")


@dataclass(frozen=True)
class Answer:
    """What one Solution says, or one of a stacked one."""

    status: str
    direction: Floats
    dual: Floats
    message: str

    @classmethod
    def of(cls, solution: Any, at: int | None = None) -> Answer:
        status, message = (x if at is None else x[at] for x in (solution.status, solution.message))
        direction, dual = (x if at is None else x[at] for x in (solution.direction, solution.dual))
        return cls(str(getattr(status, "value", status)), direction.numpy().ravel(), dual.numpy().ravel(), str(message))


@dataclass(frozen=True)
class Verdict:
    """status as claimed; ``wrong`` says what is not true of it, "" if nothing.

    feasible: whether some direction meets the rows exactly, None where it was not asked. Asked of every status but of
        "certified" only where the direction itself does not meet them.
    """

    status: str
    wrong: str = ""
    feasible: bool | None = None
    message: str = ""


def judge(problem: ExactProblem, answer: Answer) -> Verdict:
    """The verdict on one answer."""
    if not (np.isfinite(answer.direction).all() and np.isfinite(answer.dual).all()):
        return Verdict(answer.status, "direction or dual is not finite")
    direction = Exact.of(answer.direction)
    if answer.status == "certified":
        wrong = _certified(problem, answer, direction)
        return Verdict(answer.status, wrong, problem.feasible(direction))
    feasible = problem.feasible(direction, answer.dual[problem.ids] > 0)
    if answer.status == "infeasible":
        return Verdict(answer.status, "a direction meets the rows" if feasible else _signs(problem, answer), feasible)
    return Verdict(answer.status, _statements(problem, answer, direction), feasible)


def _certified(problem: ExactProblem, answer: Answer, direction: Exact) -> str:
    length = direction.square()
    if not problem.strict.any() and not problem.general:
        return "" if length == 0 else "the zero direction is shorter"
    values = problem.rows @ direction
    smallest = _smallest(problem, values)
    if smallest is not None and smallest <= 0:
        return f"the smallest row is {float(smallest):.1e}, not above 0"
    if not problem.general:
        assert smallest is not None
        # Rows of 1e-320 have no direction in float64 that they are 1 on; any multiple may stand for it.
        off = abs(smallest - 1) > VIOLATION
        if off and all(abs(direction.fraction(at)) <= LARGEST * smallest for at in range(len(answer.direction))):
            return f"the smallest row is {float(smallest):.9g}, not 1"
    return _missed(problem, values, length) or _gap(problem, answer, length, smallest)


def _smallest(problem: ExactProblem, values: Exact) -> Fraction | None:
    """The smallest row over its right-hand side, of those above 0."""
    ratios = (values.fraction(at) / problem.rhs.fraction(at) for at in np.flatnonzero(problem.strict))
    return min(ratios, default=None)


def _missed(problem: ExactProblem, values: Exact, length: Fraction) -> str:
    """Rows that miss their right-hand sides by more than 1e-7, relative."""
    for at in range(len(problem.ids)):
        if problem.strict[at] and not problem.general:
            continue
        missed = problem.rhs.fraction(at) - values.fraction(at)
        if missed == 0 or (missed < 0 and not problem.equal[at]):
            continue
        # |missed| > 1e-7 (sqrt(a) + c), without the root.
        rest = abs(missed) / VIOLATION - abs(problem.rhs.fraction(at))
        if rest > 0 and rest**2 > problem.rows[at].square() * length:
            return f"row {at} misses its right-hand side by {float(abs(missed)):.1e}"
    return ""


def _gap(problem: ExactProblem, answer: Answer, length: Fraction, smallest: Fraction | None) -> str:
    wrong = _signs(problem, answer)
    if wrong:
        return wrong
    value, combined = _dual(problem, answer.dual[problem.ids])
    if problem.general and length == 0:
        return ""
    if value <= 0 or combined == 0:
        return "the multipliers show no gap"
    scale = Fraction(1) if problem.general or smallest is None else smallest
    gap = 1 - value**2 * scale**2 / (combined * length)
    bound = abs(gap) if problem.general else gap
    return f"the gap is {float(gap):.1e}" if bound > GAP else ""


def _signs(problem: ExactProblem, answer: Answer) -> str:
    weights = answer.dual[problem.ids]
    if (weights[~problem.equal] < 0).any():
        return "a multiplier is negative"
    stray = np.count_nonzero(answer.dual) != np.count_nonzero(weights)
    return "a multiplier stands where no row is" if stray else ""


def _dual(problem: ExactProblem, weights: Floats) -> tuple[Fraction, Fraction]:
    """rhs'u and ||sum u row||^2."""
    u = Exact.of(weights)
    return (u @ problem.rhs).fraction(), (u @ problem.rows).square()


def _statements(problem: ExactProblem, answer: Answer, direction: Exact) -> str:
    """What the message of an unverified answer says besides."""
    margin, bound = SEPARABLE.search(answer.message), NONE_BELOW.search(answer.message)
    if margin:
        smallest = _smallest(problem, problem.rows @ direction)
        if smallest is None or not meets(problem.rows.digits, problem.strict, direction.digits):
            return "the direction does not separate, as the message says"
        if smallest**2 < Fraction(margin[1]) ** 2 * direction.square():
            return f"the margin is {float(smallest) / float(direction.square()) ** 0.5:.9g}, not {margin[1]}"
    if bound:
        value, combined = _dual(problem, answer.dual[problem.ids])
        if value <= 0 or _signs(problem, answer) or value**2 < Fraction(bound[1]) ** 2 * combined:
            return f"the multipliers do not show that no direction of norm below {bound[1]} meets the rows"
    return ""
