"""Every norm of the limit problems once: its value, its dual, how cvxpy states it and who solves its working rows.

Adding one is an entry here and the file of its solver; from outside, :func:`register_norm`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.rows import Array, Index, RowProblem

Norm = str | float
Value = Callable[[Array], float]
Answer = tuple[Array, Array]
# Random pairs of which <M, W> <= ||W|| ||M||_dual is checked for a norm from outside, and the rounding allowed there.
PAIRS, PAIR_ROUNDING = 64, 1e-9


@dataclass(frozen=True)
class WorkingRows:
    """What a norm's solver is given: ``min ||W|| subject to <W, row_i> >= rhs_i`` over the rows that may matter.

    Attributes:
        problem: all rows.
        ids: (m,) numbers of those that may matter; those of W are also ``delta_i z_i'``, see :attr:`factors`.
        lengths: (m,), of the rows before they were divided by them.
        rhs: (m,) >= 0, the largest 1.
        start: W of the Euclidean solution, of the direction's shape.
        dual: its multipliers (m,), the largest 1.
        rough: a gap that is good enough for now; 0 means as small as can be.
    """

    problem: RowProblem
    ids: Index
    lengths: Array
    rhs: Array
    start: Array
    dual: Array
    rough: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of W: (d,) or (d, dq)."""
        return self.problem.shape

    @property
    def rows(self) -> Array:
        """(m, d dq), of length 1."""
        return np.asarray(self.problem.rows(self.ids) / self.lengths[:, None])

    @property
    def long_rows(self) -> Any:
        """The same in numpy's longest numbers, of which float64's rounding is no part."""
        return self.problem.rows(self.ids, np.longdouble) / self.lengths[:, None]

    @property
    def factors(self) -> tuple[Array, Array]:
        """delta (m, d) of length 1 and z (m, dq) with rows delta z'."""
        assert self.problem.queries is not None
        delta, z = self.problem.differences(self.ids), self.problem.queries[self.ids // self.problem.live.shape[1]]
        length = np.linalg.norm(delta, axis=1)
        return delta / length[:, None], z * (length / self.lengths)[:, None]


#: W of the direction's shape (or its entries) with rows met, and multipliers (m,) >= 0; None on failure.
Solver = Callable[[WorkingRows], Answer | None]


@dataclass(frozen=True)
class NormEntry:
    """A norm that limit problems can be stated in.

    Attributes:
        name: as ``norm=`` takes it.
        value: ||W|| of an array (d,) or (d, dq) whose largest entry is 1 in size.
        dual: max <M, W> over ||W|| <= 1, likewise. All certificates rest on it.
        unique: True where the norm is strictly convex, so that its optimum is unique; None where nothing is known.
        of_matrices: whether it is one of W alone.
        solve: of the working rows; None leaves them to cvxpy.
        expression: how cvxpy states it, of a variable of W's shape.
        from_outside: whether its parts are a user's and are checked before they are used.
    """

    name: str
    value: Value
    dual: Value
    unique: bool | None = None
    of_matrices: bool = False
    solve: Solver | None = None
    expression: Callable[[Any], Any] | None = None
    from_outside: bool = False
    _checked: set[tuple[int, ...]] = field(default_factory=set, repr=False, compare=False)
    _dual_of_unit: dict[tuple[int, ...], float] = field(default_factory=dict, repr=False, compare=False)

    def solve_working(self, working: WorkingRows) -> Answer | None:
        """W and multipliers, by the solver or by cvxpy."""
        self.check(working.shape)
        if self.solve is not None:
            return self.solve(working)
        from lightning_maxmargin.svm.norms.stated import solve_stated

        return solve_stated(self, working.shape, working.rows, working.rhs)

    def dual_of_unit(self, shape: tuple[int, ...]) -> float:
        """At least the dual norm of any array of this shape whose Euclidean norm is 1.

        sqrt(size) for our own; ``sqrt(sum_j ||e_j||_dual^2)`` over all entries for a norm from outside.
        """
        size = math.prod(shape)
        if self.name == "l2":
            return 1.0
        if not self.from_outside:
            return math.sqrt(size)
        if shape not in self._dual_of_unit:
            units = (np.bincount([j], minlength=size).astype(np.float64).reshape(shape) for j in range(size))
            self._dual_of_unit[shape] = math.sqrt(sum(float(self.dual(unit)) ** 2 for unit in units))
        return self._dual_of_unit[shape]

    def check(self, shape: tuple[int, ...]) -> None:
        """That value and dual fit each other for directions of this shape, as far as random pairs tell.

        Raises:
            InputError: they return no number, the norm is not homogeneous, or the dual is too small.
        """
        if shape in self._checked or not self.from_outside:
            return
        rng = np.random.default_rng(0)
        for W, M in rng.standard_normal((PAIRS, 2, *shape)):
            try:
                size, twice, dual = float(self.value(W)), float(self.value(2 * W)), float(self.dual(M))
            except (TypeError, ValueError, IndexError) as error:
                raise InputError(
                    f"norm {self.name!r}: value and dual must give a number for an array {list(shape)}: {error}"
                ) from error
            if not (size > 0 and abs(twice - 2 * size) <= PAIR_ROUNDING * twice):
                raise InputError(f"norm {self.name!r}: value is no norm: it is {size:g} at W and {twice:g} at 2 W")
            if not float(np.vdot(M, W)) <= (1 + PAIR_ROUNDING) * size * dual:
                raise InputError(
                    f"norm {self.name!r}: dual is too small: <M, W> = {np.vdot(M, W):g} with ||W|| = {size:g} and "
                    f"||M||_dual = {dual:g}; it must be max <M, W> over ||W|| <= 1"
                )
        self._checked.add(shape)


def _order(order: float) -> Value:
    return lambda x: float(np.linalg.norm(x.ravel(), order))


def _spectral(x: Array) -> float:
    return float(np.linalg.svd(x, compute_uv=False)[0])


def _nuclear(x: Array) -> float:
    return float(np.linalg.svd(x, compute_uv=False).sum())


def _stated(atom: str, *options: Any) -> Callable[[Any], Any]:
    def expression(W: Any) -> Any:
        import cvxpy as cp

        flat = W if atom in ("sigma_max", "normNuc") or W.ndim == 1 else cp.vec(W, order="C")
        return getattr(cp, atom)(flat, *options)

    return expression


# Solvers are imported when they are used: they ask the certificate for their gap, and that asks the norms.
def _solve_linf(working: WorkingRows) -> Answer | None:
    from lightning_maxmargin.svm.norms.linf import interior_linf, solve_linf
    from lightning_maxmargin.svm.norms.long import is_long, sharpened

    def solve(rows: Any) -> tuple[Array, Array, float] | None:
        if is_long(rows):
            return interior_linf(rows, working.rhs, working.start.ravel(), working.dual)
        return solve_linf(rows, working.rhs)

    return _if_finite(sharpened(working, math.inf, solve))


def _solve_lp(p: float) -> Solver:
    def solve(working: WorkingRows) -> Answer | None:
        from lightning_maxmargin.svm.norms.long import sharpened
        from lightning_maxmargin.svm.norms.lp import solve_lp

        start = working.start.ravel()
        found = sharpened(working, p, lambda rows: solve_lp(rows, working.rhs, p, start, working.dual, working.rough))
        return _if_finite(found)

    return solve


def _solve_semidefinite(form: str) -> Solver:
    def solve(working: WorkingRows) -> Answer | None:
        from lightning_maxmargin.svm.norms import semidefinite
        from lightning_maxmargin.svm.norms.conic import TARGET, solve_semidefinite

        stated = getattr(semidefinite, form)(*working.factors, working.rhs)
        return _if_finite(solve_semidefinite(stated, working.start, working.dual, working.rough or TARGET))

    return solve


def _if_finite(answer: tuple[Array, Array, float] | None) -> Answer | None:
    return None if answer is None or not np.isfinite(answer[2]) else answer[:2]


def _lp(p: float) -> NormEntry:
    return NormEntry(str(p), _order(p), _order(p / (p - 1)), True, solve=_solve_lp(p), expression=_stated("pnorm", p))


#: Every norm that has a name; :func:`register_norm` adds to it. Numbers p are the lp norms besides.
NORMS: dict[str, NormEntry] = {
    "l2": NormEntry("l2", _order(2.0), _order(2.0), True, expression=_stated("pnorm", 2)),
    "linf": NormEntry("linf", _order(math.inf), _order(1.0), solve=_solve_linf, expression=_stated("norm_inf")),
    "spectral": NormEntry(
        "spectral", _spectral, _nuclear, None, True, _solve_semidefinite("Spectral"), _stated("sigma_max")
    ),
    "nuclear": NormEntry(
        "nuclear", _nuclear, _spectral, None, True, _solve_semidefinite("Nuclear"), _stated("normNuc")
    ),
}


def advice() -> str:
    """What a norm may be."""
    return f"use {', '.join(map(repr, NORMS))}, or a number p > 1 for lp"


def check_norm(norm: Norm, matrix: bool) -> Norm:
    """The norm as this package writes it: 2 becomes "l2", other numbers a float.

    Raises: InputError on unknown names, numbers outside (1, inf), and norms of matrices without queries.
    """
    if isinstance(norm, str):
        if norm not in NORMS:
            raise InputError(f"norm {norm!r} is unknown: {advice()}")
        if NORMS[norm].of_matrices and not matrix:
            raise InputError(f"norm {norm!r} is one of matrices: pass queries, or use 'l2', 'linf' or a number p > 1")
        return norm
    if isinstance(norm, bool) or not isinstance(norm, int | float | np.integer | np.floating):
        raise InputError(f"norm is a {type(norm).__name__}: {advice()}")
    if not 1 < norm < math.inf:
        raise InputError(f"norm is {norm}: lp needs a number p with 1 < p < inf; the largest entry is 'linf'")
    return "l2" if norm == 2 else float(norm)


def entry_of(norm: Norm) -> NormEntry:
    """The entry of a checked norm."""
    return NORMS[norm] if isinstance(norm, str) else _lp(norm)


def is_of_matrices(norm: Norm) -> bool:
    """Whether the norm is one of W alone; a name that is unknown is none."""
    return isinstance(norm, str) and norm in NORMS and NORMS[norm].of_matrices


def register_norm(
    name: str,
    value: Value,
    dual: Value,
    *,
    unique: bool | None = None,
    of_matrices: bool = False,
    solve: Solver | None = None,
    expression: Callable[[Any], Any] | None = None,
) -> NormEntry:
    r"""From now on a norm of this name, wherever a limit problem takes one, and as ``margin_norm`` of an optimizer.

    Answers are certified by ``||W|| >= b'lam / ||sum lam row||_dual``, which holds for every W that meets the rows and
    every lam >= 0: a certificate is as right as ``dual``. That it is not too small is checked on random pairs.

    Args:
        name: one that is not taken.
        value: ||W|| of a float64 array of the direction's shape.
        dual: max <M, W> over ||W|| <= 1, of such an array.
        unique: True where the norm is strictly convex.
        of_matrices: whether it needs W, that is queries.
        solve: of :class:`WorkingRows`, returns W and the multipliers of the rows, or None; left out, cvxpy solves.
        expression: the norm of a cvxpy variable of W's shape; needed where there is no ``solve``.

    Raises:
        InputError: the name is taken or no name, a part is missing or cannot be called.

    Example:
        >>> import torch
        >>> from lightning_maxmargin import solve_att_svm
        >>> entry = register_norm(
        ...     "l1", lambda w: abs(w).sum(), lambda m: abs(m).max(), expression=lambda w: __import__("cvxpy").norm1(w)
        ... )
        >>> keys = torch.tensor([[[2.0, 1.0], [0.0, 0.0]]])
        >>> solution = solve_att_svm(keys, torch.tensor([0]), norm="l1")
        >>> solution.status, [round(x, 6) + 0.0 for x in solution.direction.tolist()]
        ('certified', [0.5, 0.0])
        >>> del NORMS["l1"]
    """
    if not isinstance(name, str) or not name:
        raise InputError(f"register_norm: name is {name!r}; expected a word")
    if name in NORMS:
        raise InputError(f"register_norm: there is a norm {name!r} already; choose another name")
    for part, found in (("value", value), ("dual", dual), ("solve", solve), ("expression", expression)):
        if not callable(found) and (found is not None or part in ("value", "dual")):
            raise InputError(f"register_norm: {part} of {name!r} is a {type(found).__name__}; expected a function")
    if solve is None and expression is None:
        raise InputError(
            f"register_norm: {name!r} has neither solve nor expression: give one, so that it can be solved"
        )
    NORMS[name] = NormEntry(name, value, dual, unique, of_matrices, solve, expression, from_outside=True)
    return NORMS[name]
