"""Rows in a norm without a solver of its own for them, by cvxpy, from how the norm is stated there."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.rows import Array

if TYPE_CHECKING:
    from lightning_maxmargin.svm.norms.registry import Answer, NormEntry

Mask = npt.NDArray[np.bool_]

#: As far as Clarabel goes: what comes back is judged by the certificate.
SETTINGS: dict[str, float] = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12, "max_iter": 200}


def solve_silently(problem: Any, **options: Any) -> str:
    """cvxpy's status after solving with these options, by default Clarabel as far as it goes; no warning, no error."""
    import cvxpy as cp

    with warnings.catch_warnings():
        # Tolerances of 1e-12 are a wish.
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        try:
            problem.solve(**(options or {"solver": cp.CLARABEL, **SETTINGS}))
        except cp.SolverError:
            return "failed"
    return str(problem.status)


def objective(entry: NormEntry, W: Any) -> Any:
    """The norm of a cvxpy variable.

    Raises: InputError where there is none, or it is no convex number.
    """
    import cvxpy as cp

    if entry.expression is None:
        raise InputError(f"norm {entry.name!r} has no expression, which these rows need: give register_norm one")
    stated = entry.expression(W)
    if not isinstance(stated, cp.Expression) or not stated.is_scalar() or not stated.is_convex():
        raise InputError(f"norm {entry.name!r}: expression returned {stated}; expected a convex number of cvxpy")
    return stated


def solve_stated(
    entry: NormEntry,
    shape: tuple[int, ...],
    rows: Array,
    rhs: Array,
    equal: Mask | None = None,
    settings: dict[str, float] = SETTINGS,
) -> Answer | None:
    """argmin ||W|| s.t. <W, row> >= rhs, = rhs where ``equal``, and the multipliers (m,); None where it has none.

    settings: of Clarabel.
    Raises: InputError where the norm is not stated for cvxpy.
    """
    import cvxpy as cp

    W = cp.Variable(shape)
    flat = W if W.ndim == 1 else cp.vec(W, order="C")
    equal = np.zeros(len(rhs), bool) if equal is None else equal
    # (which rows, the constraint, the sign that makes its multipliers' combination of rows the norm's gradient)
    parts = [(~equal, rows[~equal] @ flat >= rhs[~equal], 1.0), (equal, rows[equal] @ flat == rhs[equal], -1.0)]
    parts = [part for part in parts if part[0].any()]
    stated = cp.Problem(cp.Minimize(objective(entry, W)), [constraint for _, constraint, _ in parts])
    status = solve_silently(stated, solver=cp.CLARABEL, **settings)
    if W.value is None or "infeasible" in status:
        return None
    dual = np.zeros(len(rhs))
    for on, constraint, sign in parts:
        dual[on] = sign * np.asarray(constraint.dual_value)
    return np.asarray(W.value), np.where(equal, dual, np.maximum(dual, 0.0))
