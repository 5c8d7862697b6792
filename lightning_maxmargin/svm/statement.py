"""A limit problem as a user states it in cvxpy, read as rows, right-hand sides and the norm that it minimises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.checks import check_finite
from lightning_maxmargin.svm.equalities import EqualityAnswer, EqualityRows
from lightning_maxmargin.svm.norms.registry import NORMS, Norm, check_norm
from lightning_maxmargin.svm.rows import Array

FORM = "state: minimise a norm of one variable subject to affine constraints"
# cvxpy's names for the norms that have one each.
ATOMS = {"norm_inf": "linf", "norm1": "l1", "sigma_max": "spectral", "normnuc": "nuclear"}


@dataclass(frozen=True)
class Statement:
    """``min ||W|| s.t. <W, row_i> >= rhs_i, = rhs_i where equal``.

    Attributes:
        problem: (m, entries of W) rows, right-hand sides and which are equal.
        shape: of W.
        norm: that is minimised.
        variable: of cvxpy.
        constraints: of cvxpy, in the order of the rows.
    """

    problem: EqualityRows
    shape: tuple[int, ...]
    norm: Norm
    variable: Any
    constraints: list[Any]

    def answer(self) -> EqualityAnswer | None:
        """What cvxpy found last, multipliers of inequalities at least 0; None where it found nothing."""
        duals = [constraint.dual_value for constraint in self.constraints]
        if self.variable.value is None or any(dual is None for dual in duals):
            return None
        dual = np.concatenate([np.ravel(np.asarray(dual, np.float64), order="F") for dual in [np.zeros(0), *duals]])
        dual = np.where(self.problem.equal, dual, np.maximum(dual, 0.0))
        return EqualityAnswer(np.asarray(self.variable.value, np.float64).ravel(), dual, False, 0)


def read_problem(problem: Any, norm: Norm | None = None) -> Statement:
    """The rows of a cvxpy problem.

    Args:
        problem: ``cvxpy.Problem(cvxpy.Minimize(a norm), affine constraints)`` of one variable (d,) or (d, dq).
        norm: what is minimised, for an objective whose norm is not recognised.

    Raises:
        InputError: it is not of this form.
    """
    import cvxpy as cp

    if not isinstance(problem, cp.Problem):
        raise InputError(f"limit problem: a {type(problem).__name__} is no cvxpy.Problem; {FORM}")
    if not isinstance(problem.objective, cp.Minimize):
        raise InputError(f"limit problem: the objective is maximised; {FORM}")
    variable = _variable(problem)
    missing = [p.name() for p in problem.parameters() if p.value is None]
    if missing:
        raise InputError(f"limit problem: parameter {missing[0]} has no value; give it one")
    found = _norm_of(problem.objective.expr, variable) if norm is None else norm
    norm = check_norm(found, matrix=variable.ndim == 2)
    before, variable.value = variable.value, np.zeros(variable.shape)
    try:
        parts = [_rows(constraint, variable, at) for at, constraint in enumerate(problem.constraints)]
    finally:
        variable.value = before
    rows = np.concatenate([np.zeros((0, variable.size)), *(part.rows for part in parts)])
    rhs = np.concatenate([np.zeros(0), *(part.rhs for part in parts)])
    equal = np.concatenate([np.zeros(0, bool), *(part.equal for part in parts)])
    if not len(rows):
        raise InputError(f"limit problem: there is no constraint; {FORM}")
    check_finite(rows, "coefficients of the constraints")
    check_finite(rhs, "constants of the constraints")
    return Statement(EqualityRows(rows, rhs, equal), variable.shape, norm, variable, list(problem.constraints))


def check_solver(solver: Any) -> None:
    """Raises InputError where cvxpy has no solver of this name here."""
    import cvxpy as cp

    if isinstance(solver, str) and solver.upper() not in cp.installed_solvers():
        raise InputError(f"limit problem: solver {solver} is not installed; use {', '.join(cp.installed_solvers())}")


def _variable(problem: Any) -> Any:
    variables = problem.variables()
    if len(variables) != 1:
        names = ", ".join(v.name() for v in variables) or "none"
        raise InputError(f"limit problem: it has {len(variables)} variables ({names}); {FORM}")
    variable = variables[0]
    if variable.ndim not in (1, 2):
        raise InputError(f"limit problem: the variable has shape {list(variable.shape)}; expected (d,) or (d, dq)")
    # A list or array among them, such as bounds, counts where it is there.
    hidden = [name for name, value in variable.attributes.items() if value is not None and value is not False]
    if hidden:
        raise InputError(f"limit problem: the variable is declared {hidden[0]}; state that as a constraint instead")
    return variable


def _rows(constraint: Any, variable: Any, at: int) -> EqualityRows:
    """Rows of one constraint, at variable 0."""
    import cvxpy as cp
    from cvxpy.constraints.nonpos import NonNeg
    from cvxpy.constraints.zero import Zero

    equal = isinstance(constraint, cp.constraints.Equality | Zero)
    above = isinstance(constraint, NonNeg)
    if not (equal or above or isinstance(constraint, cp.constraints.Inequality | cp.constraints.NonPos)):
        raise InputError(f"limit problem: constraint {at} is a {type(constraint).__name__}; expected >=, <= or ==")
    if not constraint.expr.is_affine():
        raise InputError(f"limit problem: constraint {at}, {constraint}, is not affine; {FORM}")
    sign = 1.0 if above else -1.0
    size, shape = constraint.expr.size, variable.shape
    slope = constraint.expr.grad.get(variable)
    jacobian = np.zeros((variable.size, size)) if slope is None else _dense(slope, (variable.size, size))
    # cvxpy counts entries by columns, rows of W are counted by rows.
    rows = jacobian.reshape(*shape, size, order="F").reshape(variable.size, size).T
    rhs = -np.ravel(np.asarray(_dense(constraint.expr.value, constraint.expr.shape)), order="F")
    return EqualityRows(sign * rows, sign * rhs, np.full(size, equal))


def _dense(x: Any, shape: tuple[int, ...]) -> Array:
    return np.asarray(x.toarray() if hasattr(x, "toarray") else x, np.float64).reshape(shape)


def _norm_of(objective: Any, variable: Any) -> Norm:
    """The norm that a cvxpy expression is, up to a positive factor and an increasing power.

    Raises: InputError where it is none that is known here.
    """
    kind = _kind(objective)
    if kind in ("multiply", "mulexpression", "divexpression"):
        factor, rest = sorted(objective.args, key=lambda part: not part.is_constant())
        if factor.is_constant() and factor.is_scalar() and factor.value is not None and factor.value > 0:
            return _norm_of(rest, variable)
    if kind == "power" and _power(objective) > 0 and _kind(objective.args[0]) != "variable":
        return _norm_of(objective.args[0], variable)
    squares = kind == "sum" and _kind(objective.args[0]) == "power" and _power(objective.args[0]) == 2
    inner = objective.args[0].args[0] if squares else objective.args[0] if objective.args else None
    if inner is not None and _is_all_of(inner, variable):
        if squares or (kind == "quad_over_lin" and objective.args[1].is_constant()):
            return "l2"
        if kind == "pnorm" and float(getattr(objective, "original_p", objective.p)) > 1:
            return float(getattr(objective, "original_p", objective.p))
        if ATOMS.get(kind) in NORMS:
            return ATOMS[kind]
    raise InputError(
        f"limit problem: the objective {objective} is no norm of the variable that has a certificate here; minimise "
        "cvxpy.norm or sum_squares of it, or say which norm it is: norm="
    )


def _kind(expression: Any) -> str:
    """cvxpy has two classes for some functions: pnorm and pnormapprox."""
    return type(expression).__name__.lower().removesuffix("approx").removesuffix("expression_")


def _power(expression: Any) -> float:
    p = expression.p
    return float(p.value if hasattr(p, "value") else p)


def _is_all_of(expression: Any, variable: Any) -> bool:
    """Whether it is the variable, perhaps in another shape."""
    while _kind(expression) in ("reshape", "vec"):
        expression = expression.args[0]
    return expression is variable
