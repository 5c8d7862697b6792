"""The working rows of a norm without a solver of its own, by cvxpy, from how the norm is stated there."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_maxmargin.errors import InputError

if TYPE_CHECKING:
    from lightning_maxmargin.svm.norms.registry import Answer, NormEntry, WorkingRows

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

    Raises: InputError where it is no convex number.
    """
    import cvxpy as cp

    assert entry.expression is not None
    stated = entry.expression(W)
    if not isinstance(stated, cp.Expression) or not stated.is_scalar() or not stated.is_convex():
        raise InputError(f"norm {entry.name!r}: expression returned {stated}; expected a convex number of cvxpy")
    return stated


def solve_stated(entry: NormEntry, working: WorkingRows) -> Answer | None:
    """W and the multipliers of the rows; None where cvxpy has no answer."""
    import cvxpy as cp

    W = cp.Variable(working.shape)
    flat = W if W.ndim == 1 else cp.vec(W, order="C")
    met = working.rows @ flat >= working.rhs
    status = solve_silently(cp.Problem(cp.Minimize(objective(entry, W)), [met]))
    if W.value is None or met.dual_value is None or "infeasible" in status:
        return None
    return np.asarray(W.value), np.maximum(np.asarray(met.dual_value), 0.0)
