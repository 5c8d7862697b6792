"""The certificate of a direction and multipliers from any solver, from the rows alone.

What float64 may have lost is counted against the answer: margins and combinations of rows enter with bounds on their
rounding. Where these bounds are too wide and the rows are few, rational arithmetic decides.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from lightning_maxmargin.svm.certificate import NOTHING, TOLERANCES, Certificate, Status, is_certified, relative_gap
from lightning_maxmargin.svm.norms.names import Norm, dual_norm_of, norm_of
from lightning_maxmargin.svm.norms.registry import entry_of
from lightning_maxmargin.svm.rational import RationalRows, dot
from lightning_maxmargin.svm.rows import EPS, Array, Index, RowProblem, runs

# As float64 on machines without longer numbers.
LONG_EPS = float(np.finfo(np.longdouble).eps)


def certify(
    problem: RowProblem, direction: Array, dual: Array, norm: Norm = "l2", margins: Array | None = None
) -> tuple[float, float, Status]:
    r"""Gap, violation and status of a direction and multipliers from any solver.

    With right-hand side 1: ``P = .5||p||^2 / min(D p)^2``, ``Q = .5 (sum lam)^2 / ||D'lam||^2``, ``gap = 1 - Q/P``.
    In general p is scaled by the largest b/row over rows with b > 0, ``Q = .5 (b'lam)^2 / ||D'lam||^2``, and
    ``violation = max(0, -min row / (||row|| ||p||))`` over rows with b = 0. Margins and ||D'lam|| enter with their
    rounding counted against them, so that what float64 cannot tell is not certified; few rows are then judged in
    rational arithmetic. In another norm ``P = ||W|| / min(row/b)`` and ``Q = b'lam / ||sum lam row||_dual``.

    Args:
        problem: the rows.
        direction: (d,) or (d, dq), float64.
        dual: (n, T), float64, zero off the live rows.
        norm: as in ``solve_att_svm``.
        margins: (n, T), ``problem.margins`` of this very direction, where they are known.

    Returns:
        gap (1 when nothing is shown), violation (relative), "certified" | "unverified".

    Example:
        >>> import torch
        >>> problem = RowProblem.attention(torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]), torch.tensor([0]))
        >>> certify(problem, np.array([0.0, 1.0]), np.array([[0.0, 1.0]]))[2]
        'certified'
    """
    found = certificate(problem, direction, dual, norm, margins)
    return found.gap, found.violation, found.status


def certificate(
    problem: RowProblem, direction: Array, dual: Array, norm: Norm = "l2", margins: Array | None = None
) -> Certificate:
    """As :func:`certify`, all that was shown."""
    if not (np.isfinite(direction).all() and np.isfinite(dual).all()):
        return NOTHING
    if not problem.positive.any():
        return replace(NOTHING, violation=0.0) if direction.any() else Certificate(0.0, 0.0)
    if not direction.any():
        return NOTHING
    sound = bool((dual >= 0).all()) and not dual[~problem.live].any()
    gap, violation, smallest = 1.0, 1.0, 0.0
    if not problem.extreme:
        # Squares may overflow; what is then not finite shows nothing.
        with np.errstate(all="ignore"):
            gap, violation, smallest = _in_floats(problem, direction, dual, norm, margins)
    judged_exactly = sound and norm == "l2" and problem.is_small(TOLERANCES.rational_numbers)
    if judged_exactly and not is_certified(gap, violation, sound):
        rows = problem.rational(problem.ids)
        gap, violation, smallest = in_rationals(rows, direction.ravel(), dual.ravel()[problem.ids])
    return Certificate(min(gap, 1.0), violation, sound, smallest)


def _in_floats(
    problem: RowProblem, direction: Array, dual: Array, norm: Norm, margins: Array | None
) -> tuple[float, float, float]:
    positive = problem.positive
    margins = problem.margins(direction) if margins is None else margins
    lost = rounding(problem, direction)
    ids = np.flatnonzero(dual)
    lam = dual.ravel()[ids]
    # Extreme scales would under- or overflow in the squares. By a power of 2: no multiplier is rounded.
    lam = np.ldexp(lam, -int(np.frexp(lam.max(initial=1e-300))[1]))
    value, length = float(lam @ problem.rhs.ravel()[ids]), float(np.linalg.norm(direction))
    size, violation = norm_of(direction, norm), worst_miss(problem, margins, length)
    smallest = float(((margins - lost)[positive] / problem.rhs[positive]).min())
    combined, power = problem.combine(ids, lam), 2 if norm == "l2" else 1
    gap = relative_gap(value, _at_most(problem, ids, lam, combined, norm), smallest, size, power)
    if gap > TOLERANCES.plain and LONG_EPS < EPS:
        smallest = sharp_smallest(problem, direction, margins)
        combined = problem.combined(ids, problem.differences(ids, np.longdouble) * lam[:, None])
        gap = min(gap, relative_gap(value, _at_most(problem, ids, lam, combined, norm), smallest, size, power))
    return gap, violation, smallest


def _at_most(problem: RowProblem, ids: Index, lam: Array, combined: Any, norm: Norm) -> float:
    """An upper bound on the dual norm of D'lam, from what its own dtype has computed."""
    lost = combination_rounding(problem, ids, lam) * float(np.finfo(combined.dtype).eps) / EPS
    return dual_norm_of(np.asarray(combined, np.float64), norm) + entry_of(norm).dual_of_unit(problem.shape) * lost


def sharp_smallest(problem: RowProblem, direction: Array, margins: Array) -> float:
    """A lower bound on min(row w / b), the rows that may be the smallest computed once more with longer numbers."""
    lost, b = rounding(problem, direction), problem.rhs
    most = float(((margins + lost)[problem.positive] / b[problem.positive]).min())
    near = np.flatnonzero(problem.positive & (margins - lost <= most * b))
    if not len(near):
        return -np.inf  # the margins are no numbers
    return float((_long_margins(problem, direction, near) / b.ravel()[near]).min())


def _long_margins(problem: RowProblem, direction: Array, ids: Index) -> Array:
    """Lower bounds on margins, computed with longer numbers where the machine has them (64 bits instead of 53)."""
    long = direction.astype(np.longdouble)
    p = long
    if problem.queries is not None:
        sequence = ids // problem.keys.shape[1]
        first, at = runs(sequence)
        p = (problem.queries[sequence[first]] @ long.T)[at]
    lost = (
        problem.unit_rounding() * (LONG_EPS / EPS) * float(np.linalg.norm(direction)) * problem.row_norms.ravel()[ids]
    )
    return np.asarray((problem.differences(ids, np.longdouble) * p).sum(axis=1) - lost, np.float64)


def worst_miss(problem: RowProblem, margins: Array, length: float) -> float:
    """The most that a row with right-hand side 0 is missed by, relative to ||row|| times the direction's length."""
    zero = problem.zero
    return 0.0 if zero is None else missed_share(margins[zero], problem.row_norms[zero] * length)


def missed_share(margins: Array, sizes: Array) -> float:
    """The most that rows with right-hand side 0 are missed by, relative to their sizes ||row|| ||w||; at least 0."""
    shares = np.divide(-margins, sizes, out=np.zeros_like(sizes), where=sizes > 0)
    return max(0.0, float(shares.max(initial=0.0)))


def rounding(problem: RowProblem, direction: Array) -> Array:
    """What float64 may have lost in each explicit margin, bound on a product of d rounded differences: (n, T)."""
    return problem.unit_rounding() * float(np.linalg.norm(direction)) * problem.row_norms


def combination_rounding(problem: RowProblem, ids: Index, lam: Array) -> float:
    """What float64 may have lost in ||D'lam||: a sum over the rows of rounded differences."""
    return (0.5 * len(ids) * EPS + problem.unit_rounding()) * float(np.abs(lam) @ problem.row_norms.ravel()[ids])


def in_rationals(rows: RationalRows, w: Array, dual: Array, scale_free: bool = True) -> tuple[float, float, float]:
    """Gap, violation and smallest row of w (r,) and dual (m,), without rounding.

    scale_free: w is judged as if scaled to smallest row 1, so that only rows with right-hand side 0 can be missed;
        otherwise every row counts as it is, missed by its share of |rhs|, and the smallest row is 1.
    """
    point = [Fraction(float(x)) for x in w]
    lam = [Fraction(float(x)) * f for x, f in zip(dual, rows.factor, strict=True)]
    margins, square = [dot(row, point) for row in rows.rows], dot(point, point)
    smallest, missed = Fraction(1), 0.0
    if scale_free:
        smallest = min((m / b for m, b in zip(margins, rows.rhs, strict=True) if b > 0), default=Fraction(0))
    for row, margin, b, equal in zip(rows.rows, margins, rows.rhs, rows.equal, strict=True):
        short = b - margin
        if (short > 0 or (equal and short)) and (b == 0 or not scale_free):
            size = b**2 or square * int(row @ row)
            missed = max(missed, float(min(short**2 / size, Fraction(1))) ** 0.5 if size else 1.0)
    combined = [dot(column, lam) for column in rows.rows.T]
    value = dot(rows.rhs, lam)
    if min(smallest, value) <= 0:
        return 1.0, missed, 0.0
    gap = relative_gap(value**2, dot(combined, combined), smallest**2, square, power=1)
    return max(float(gap), -1.0), missed, float(min(smallest, Fraction(2)))
