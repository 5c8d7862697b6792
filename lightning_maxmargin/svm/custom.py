"""A limit problem of the user's own, as explicit rows or stated in cvxpy: solved, and then certified by us."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.certificate import TOLERANCES
from lightning_maxmargin.svm.checks import check_finite
from lightning_maxmargin.svm.doubles import to_array
from lightning_maxmargin.svm.equalities import EqualityAnswer, EqualityRows, certify_equalities, solve_equalities
from lightning_maxmargin.svm.norms.names import Norm, dual_norm_of, is_unique, norm_of
from lightning_maxmargin.svm.norms.registry import check_norm, entry_of
from lightning_maxmargin.svm.norms.stated import solve_silently, solve_stated
from lightning_maxmargin.svm.rows import Array, RowProblem
from lightning_maxmargin.svm.solution import Solution, answered, infeasible
from lightning_maxmargin.svm.solve import solve_problem
from lightning_maxmargin.svm.statement import check_solver, read_problem
from lightning_maxmargin.svm.threads import one_thread

GOAL = "meets the rows"


@dataclass(frozen=True, kw_only=True)
class CustomSolution(Solution):
    """A :class:`Solution` that knows its rows; what a limit of ``MarginMonitor`` may return.

    Attributes:
        dual: (m,), of any sign on equalities; in l2 direction = sum dual * row.
        support: (s,), the tight inequalities.
        violation: the most that any row misses by, relative to ``||row|| ||W|| + |rhs|``, equalities included.
        problem: the rows it is of.
    """

    problem: EqualityRows

    def achieved(self, direction: Tensor) -> float | None:
        """The margin of a direction: ``min <row, W> / rhs over inequalities with rhs > 0``, by ||W|| in this norm.

        At most ``margin`` for every direction that meets the other rows as well. None where no row has rhs > 0.

        Args:
            direction: of the solution's shape, (d,) or (d, dq).

        Raises:
            InputError: it is of another shape.
        """
        W = to_array(direction, "direction")
        if W.shape != tuple(self.direction.shape):
            raise InputError(
                f"direction has shape {list(W.shape)}, the limit problem's {list(self.direction.shape)}: pass its own"
            )
        on, length = ~self.problem.equal & (self.problem.rhs > 0), norm_of(W, self.norm)
        if not on.any():
            return None
        margins = self.problem.rows[on] @ W.ravel() / self.problem.rhs[on]
        return float(margins.min()) / length if length > 0 else 0.0


def solve_rows(rows: Tensor, rhs: Tensor, equal: Tensor | None = None, *, norm: Norm = "l2") -> CustomSolution:
    r"""``argmin ||w|| s.t. <w, row_i> = rhs_i where equal_i, <w, row_i> >= rhs_i elsewhere``, any signs in rhs.

    The general door: for example the graph SVM of next-token prediction ("Mechanics of Next Token Prediction with
    Self-Attention", arXiv 2403.08081) has equalities with right-hand side 0 inside a strongly connected component of
    the token-priority graph and inequalities with 1 along strict priority.

    Args:
        rows: (m, d), or (m, d, dq) for W; any float dtype, solved in float64.
        rhs: (m,), of any sign.
        equal: (m,) of 0 and 1, 1 at equalities; none where None.
        norm: as in ``solve_att_svm``; where it is not l2, problems with equalities, negative right-hand sides or W are
            solved by cvxpy.

    Returns:
        CustomSolution with direction (d,) or (d, dq), dual (m,) (any sign on equalities, w = sum dual * row, or the
        Farkas vector), support (s,) the tight inequalities, violation the most that any row misses by.

    Raises:
        InputError: shapes that disagree, NaN or Inf, an unknown norm.

    Example:
        >>> import torch
        >>> rows, rhs = torch.tensor([[1.0, 1.0], [1.0, 0.0]]), torch.tensor([0.0, 1.0])
        >>> [round(x, 12) for x in solve_rows(rows, rhs, torch.tensor([True, False])).direction.tolist()]
        [1.0, -1.0]
    """
    x, b = to_array(rows, "rows"), to_array(rhs, "rhs")
    e = np.zeros(len(b) if b.ndim else 0) if equal is None else to_array(equal, "equal")
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise InputError(f"rows have shape {list(x.shape)}: pass (rows, features), none of them empty")
    for name, value in (("rhs", b), ("equal", e)):
        if value.shape != (len(x),):
            raise InputError(f"{name} has shape {list(value.shape)} for {len(x)} rows: pass one number each")
    check_finite(x, "rows")
    check_finite(b, "rhs")
    if not np.isin(e, (0, 1)).all():
        raise InputError("equal holds numbers other than 0 and 1: pass true for equalities")
    norm = check_norm(norm, matrix=x.ndim == 3)
    return shortest(EqualityRows(x.reshape(len(x), -1), b, e.astype(bool)), GOAL, norm, x.shape[1:])


def solve_cvxpy(problem: Any, *, norm: Norm | None = None, **options: Any) -> CustomSolution:
    r"""A problem of your own stated in cvxpy, solved and certified: cvxpy's word alone is not taken.

    Rows are read off the affine constraints. Problems that :func:`solve_rows` solves itself are solved so, because
    cvxpy's answers leave 1e-6 of the direction open; others by cvxpy, with multipliers from its dual values. Either
    answer is judged by the certificate of :func:`solve_rows`, and "infeasible" needs a Farkas vector.

    Args:
        problem: minimises a norm (or a positive multiple of a power of it, as ``sum_squares``) of one variable (d,) or
            (d, dq) subject to ``>=``, ``<=`` and ``==`` of affine expressions.
        norm: which norm it is, as in ``solve_att_svm``, where the objective does not show it.
        options: of ``problem.solve`` where cvxpy solves, as solver and its tolerances; by default Clarabel as far as
            it goes.

    Returns:
        CustomSolution, its direction also the variable's value. Rows are in the order of the constraints, entries of
        one by columns, and ``A w <= b`` is ``-A w >= -b``. "unverified" where neither was shown.

    Raises:
        InputError: it is not of this form, or the solver is not installed.

    Example:
        >>> import cvxpy as cp
        >>> w = cp.Variable(2)
        >>> solution = solve_cvxpy(cp.Problem(cp.Minimize(cp.norm(w)), [w[0] + w[1] == 0, w[0] >= 1]))
        >>> solution.status, [round(x, 6) for x in solution.direction.tolist()]
        ('certified', [1.0, -1.0])
    """
    stated = read_problem(problem, norm)
    check_solver(options.get("solver"))

    def there() -> EqualityAnswer | None:
        solve_silently(problem, **options)
        return stated.answer()

    answers = _answers(stated.problem, stated.norm, stated.shape, there)
    solution = _first_shown(answers, stated.problem, GOAL, stated.norm, stated.shape)
    stated.variable.value = None if solution.infeasible else solution.direction.numpy()
    return solution


def shortest(
    problem: EqualityRows, goal: str, norm: Norm = "l2", shape: tuple[int, ...] | None = None
) -> CustomSolution:
    """The direction of this shape, by default (d,), with the smallest norm that meets the rows."""
    shape = shape or problem.rows.shape[1:]
    return _first_shown(_answers(problem, norm, shape), problem, goal, norm, shape)


def _answers(
    problem: EqualityRows, norm: Norm, shape: tuple[int, ...], there: Callable[[], EqualityAnswer | None] = lambda: None
) -> Iterator[EqualityAnswer | None]:
    """By this package's solvers where there is one for these rows in this norm; by ``there``, and by cvxpy."""
    if norm == "l2":
        yield _shortest(problem)
        yield there()
        return
    ours = len(shape) == 1 and not problem.equal.any() and not (problem.rhs < 0).any()
    if ours:
        found = solve_problem(RowProblem.explicit(problem.rows, problem.rhs), None, GOAL, norm)
        yield EqualityAnswer(found.direction.numpy(), found.dual[:, 1].numpy(), found.infeasible, found.iterations)
    yield there()
    if not ours or entry_of(norm).expression is not None:
        stated = solve_stated(entry_of(norm), shape, problem.rows, problem.rhs, problem.equal)
        yield None if stated is None else EqualityAnswer(stated[0].ravel(), stated[1], False, 0)
    # Whether rows can be met does not depend on the norm.
    yield _shortest(problem)


def _shortest(problem: EqualityRows) -> EqualityAnswer:
    with one_thread():
        return solve_equalities(problem)


def _first_shown(
    answers: Iterable[EqualityAnswer | None], problem: EqualityRows, goal: str, norm: Norm, shape: tuple[int, ...]
) -> CustomSolution:
    """The first that is certified or proves infeasibility, else the one with the smallest gap."""
    best: CustomSolution | None = None
    for answer in answers:
        if answer is None:
            continue
        found = _solution(problem, answer, goal, norm, shape)
        if found.certified or found.infeasible:
            return found
        best = found if best is None or found.gap < best.gap else best
    assert best is not None
    return best


def _solution(
    problem: EqualityRows, answer: EqualityAnswer, goal: str, norm: Norm, shape: tuple[int, ...]
) -> CustomSolution:
    """An answer with its certificate; sizes that cannot be squared come out as nothing shown."""
    with np.errstate(all="ignore"):
        return _judged(problem, answer, goal, norm, shape)


def _judged(
    problem: EqualityRows, answer: EqualityAnswer, goal: str, norm: Norm, shape: tuple[int, ...]
) -> CustomSolution:
    certificate = certify_equalities(problem, answer, norm, shape)
    w, dual = answer.w, answer.dual
    if certificate.refuted:
        nothing = np.zeros(0, np.int64)
        return _stated(infeasible(certificate, shape, dual, nothing, goal, answer.rounds), problem, norm)
    length = float(np.linalg.norm(w))
    sizes = np.linalg.norm(problem.rows, axis=1) * length + np.abs(problem.rhs)
    tight = ~problem.equal & (np.abs(problem.rows @ w - problem.rhs) <= TOLERANCES.tight * sizes)
    known = f"no direction was shown to be the shortest that {goal}, nor that none does"
    if not answer.infeasible:
        known += f"; relative gap {certificate.gap:.1e}, rows missed by {certificate.violation:.1e}"
    solution = answered(
        replace(certificate, gap=1.0) if answer.infeasible else certificate,
        w.reshape(shape),
        _scaled(problem, dual, w, norm, shape),
        np.flatnonzero(tight),
        margin=0.0 if answer.infeasible else (1 / norm_of(w.reshape(shape), norm) if length > 0 else float("inf")),
        rounds=answer.rounds,
        known=known,
        unique=is_unique(norm),
    )
    return _stated(solution, problem, norm)


def _scaled(problem: EqualityRows, dual: Array, w: Array, norm: Norm, shape: tuple[int, ...]) -> Array:
    """In l2 such that w = sum dual row, else such that this sum has dual norm 1."""
    combined = dual @ problem.rows
    size = dual_norm_of(combined.reshape(shape), norm)
    length = float(np.linalg.norm(w)) if norm == "l2" else 1.0
    # Our own are, up to rounding.
    if not (0 < size < np.inf and 0 < length < np.inf) or abs(size / length - 1) <= TOLERANCES.violation:
        return dual
    scaled = dual * (length / size)
    # Numbers next to 0 would lose the digits that the certificate was given with.
    whole = np.isfinite(scaled).all() and not (np.abs(scaled) < 1e-290)[dual != 0].any()
    return scaled if whole else dual


def _stated(solution: Solution, problem: EqualityRows, norm: Norm) -> CustomSolution:
    parts = {field.name: getattr(solution, field.name) for field in fields(solution)}
    return CustomSolution(**{**parts, "norm": norm, "unique": is_unique(norm)}, problem=problem)
