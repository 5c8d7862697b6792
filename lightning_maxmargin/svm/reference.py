"""The limit problems as cvxpy states them (Clarabel): slow, plain, and the oracle of the tests."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_maxmargin.svm.norms.names import Norm
from lightning_maxmargin.svm.rows import Array, RowProblem

Mask = npt.NDArray[np.bool_]
SETTINGS: dict[str, float] = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12, "max_iter": 200}


def _solve(objective: Any, constraints: list[Any], settings: dict[str, float] = SETTINGS) -> str:
    import cvxpy as cp

    problem = cp.Problem(objective, constraints)
    with warnings.catch_warnings():
        # Tolerances of 1e-12 are a wish; what comes back is judged by the tests.
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        problem.solve(solver=cp.CLARABEL, **settings)
    return str(problem.status)


def reference_rows(problem: RowProblem) -> Array | None:
    """argmin ||W||_F^2 / 2 s.t. <W, row> >= b, of the direction's shape; None where infeasible."""
    import cvxpy as cp

    w = cp.Variable(problem.dim)
    ids = problem.ids
    status = _solve(cp.Minimize(cp.sum_squares(w) / 2), [problem.rows(ids) @ w >= problem.rhs.ravel()[ids]])
    return None if "infeasible" in status else np.asarray(w.value).reshape(problem.shape)


def reference_norm(problem: RowProblem, norm: Norm, **settings: float) -> Array | None:
    """argmin ||W|| s.t. <W, row> >= b in a norm of ``solve_att_svm``, of the direction's shape; None if infeasible."""
    import cvxpy as cp

    w, ids = cp.Variable(problem.dim), problem.ids
    if norm in ("spectral", "nuclear"):
        W = cp.reshape(w, problem.shape, order="C")
        size = cp.sigma_max(W) if norm == "spectral" else cp.normNuc(W)
    else:
        order: Any = {"l2": 2, "linf": "inf"}.get(str(norm), norm)
        size = cp.norm(w, order)
    rows = [problem.rows(ids) @ w >= problem.rhs.ravel()[ids]]
    status = _solve(cp.Minimize(size), rows, settings or SETTINGS)
    return None if "infeasible" in status else np.asarray(w.value).reshape(problem.shape)


def reference_equalities(rows: Array, rhs: Array, equal: Mask) -> Array | None:
    """argmin ||w||^2 / 2 s.t. <w, row> = rhs where equal, >= rhs elsewhere (d,); None where infeasible."""
    import cvxpy as cp

    w = cp.Variable(rows.shape[1])
    met = [rows[equal] @ w == rhs[equal]] if equal.any() else []
    met += [rows[~equal] @ w >= rhs[~equal]] if not equal.all() else []
    status = _solve(cp.Minimize(cp.sum_squares(w) / 2), met)
    return None if "infeasible" in status else np.asarray(w.value)


def reference_rate_coupled(problem: RowProblem, spare: Array) -> Array:
    """argmax of min_it [<W, row_it> + spare_i] over ||W|| <= 1, <W, row_it> >= 0, stated as a cone problem."""
    import cvxpy as cp

    w, t = cp.Variable(problem.dim), cp.Variable()
    ids = problem.ids
    margins = problem.rows(ids) @ w
    offset = spare[ids // problem.live.shape[1]]
    _solve(cp.Maximize(t), [margins + offset >= t, margins >= 0, cp.norm(w) <= 1])
    return np.asarray(w.value).reshape(problem.shape)


def reference_binary(x: Array, y: Array) -> Array | None:
    """argmin ||v||^2 / 2 s.t. y_i v'x_i >= 1 (d,); None where infeasible."""
    import cvxpy as cp

    v = cp.Variable(x.shape[1])
    status = _solve(cp.Minimize(cp.sum_squares(v) / 2), [cp.multiply(y, x @ v) >= 1])
    return None if "infeasible" in status else np.asarray(v.value)


def reference_multiclass(x: Array, y: Array, classes: int) -> Array | None:
    """argmin ||V||_F^2 / 2 s.t. (V_y - V_k)'x >= 1, k != y: (K, d); None where infeasible."""
    import cvxpy as cp

    V = cp.Variable((classes, x.shape[1]))
    rows = [(V[int(c)] - V[k]) @ xi >= 1 for xi, c in zip(x, y, strict=True) for k in range(classes) if k != int(c)]
    status = _solve(cp.Minimize(cp.sum_squares(V) / 2), rows)
    return None if "infeasible" in status else np.asarray(V.value)
