"""Working rows in longer numbers, where rows that nearly cancel leave float64 too few digits.

Two sequences that nearly copy one another and select each other's tokens have rows a and -a + e: the optimum has norm
1 / ||e||, multipliers of that size, and normal equations of condition 1 / ||e||^2. Here the equations are not squared,
are solved in float64, and are refined with residuals in numpy's longest numbers, in which the iterates are too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import LinAlgError
from scipy.linalg.lapack import dgetrf, dgetrs

from lightning_maxmargin.svm.norms.gap import gap_of
from lightning_maxmargin.svm.rows import EPS, Array

if TYPE_CHECKING:
    from lightning_maxmargin.svm.norms.registry import WorkingRows

Answer = tuple[Array, Array, float]
# Of float64 answers: a gap above this, or a smallest row whose rounding is more, is not taken for the last word.
ENOUGH = 1e-10
# Unknowns up to which it is tried: 1,000 take .05 s for each of some 30 steps.
MOST_UNKNOWNS = 1000
REFINEMENTS = 3


def is_long(x: Array) -> bool:
    """Whether an array holds longer numbers than float64."""
    return bool(np.finfo(x.dtype).eps < EPS)


def solver_of(K: Any) -> Callable[[Any], Any]:
    """x with K x = rhs, for any rhs; LinAlgError where K is singular in float64.

    Example:
        >>> solver_of(np.array([[2.0, 0.0], [0.0, 4.0]], np.longdouble))(np.ones(2)).tolist() == [0.5, 0.25]
        True
    """
    factor, pivots, singular = dgetrf(np.asarray(K, np.float64))
    if singular:
        raise LinAlgError

    def solve(rhs: Any) -> Any:
        x = np.zeros(len(rhs), K.dtype)
        for _ in range(REFINEMENTS + 1):
            x = x + dgetrs(factor, pivots, np.asarray(rhs - K @ x, np.float64))[0]
        return x

    return solve


def sharpened(working: WorkingRows, p: float, solve: Callable[[Array], Answer | None]) -> Answer | None:
    """What ``solve`` finds of rows in float64 or, where that may be rounding and is worse, in longer numbers."""
    rows, rhs = working.rows, working.rhs
    found = solve(rows)
    enough = max(ENOUGH, working.rough)
    if (found is not None and found[2] <= enough and _rounding(rows, rhs, found[0]) <= enough) or not _can_be_long(
        rows
    ):
        return found
    longer = working.long_rows
    answers = [(w.astype(np.float64), lam.astype(np.float64)) for w, lam, _ in filter(None, (found, solve(longer)))]
    judged = [(w, lam, gap_of(longer, rhs, w, lam, p)) for w, lam in answers]
    return min(judged, key=lambda answer: answer[2], default=None)


def _rounding(rows: Array, rhs: Array, w: Array) -> float:
    """The share of the smallest row / rhs that float64's rounding of w is."""
    on = rhs > 0
    smallest = float((rows[on] @ w / rhs[on]).min())
    return EPS * float(np.linalg.norm(w)) / smallest if smallest > 0 else np.inf


def _can_be_long(rows: Array) -> bool:
    return bool(np.finfo(np.longdouble).eps < EPS) and sum(rows.shape) <= MOST_UNKNOWNS
