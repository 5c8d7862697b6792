"""The oracle of the tests: the limit problems as cvxpy states them (Clarabel), slow and plain."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_maxmargin.svm.norms.registry import Norm, check_norm, entry_of
from lightning_maxmargin.svm.norms.stated import solve_silently, solve_stated
from lightning_maxmargin.svm.rows import Array, RowProblem

Mask = npt.NDArray[np.bool_]


def _solve(goal: Any, constraints: list[Any]) -> str:
    import cvxpy as cp

    return solve_silently(cp.Problem(goal, constraints))


def reference_rows(problem: RowProblem) -> Array | None:
    """argmin ||W||_F^2 / 2 s.t. <W, row> >= b, of the direction's shape; None where infeasible."""
    import cvxpy as cp

    w = cp.Variable(problem.dim)
    ids = problem.ids
    status = _solve(cp.Minimize(cp.sum_squares(w) / 2), [problem.rows(ids) @ w >= problem.rhs.ravel()[ids]])
    return None if "infeasible" in status else np.asarray(w.value).reshape(problem.shape)


def reference_norm(problem: RowProblem, norm: Norm) -> Array | None:
    """argmin ||W|| s.t. <W, row> >= b in a norm of ``solve_att_svm``, of the direction's shape; None if infeasible."""
    entry, ids = entry_of(check_norm(norm, len(problem.shape) == 2)), problem.ids
    found = solve_stated(entry, problem.shape, problem.rows(ids), problem.rhs.ravel()[ids])
    return None if found is None else found[0]


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
