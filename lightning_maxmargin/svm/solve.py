"""Solving the limit problems: the answer, its certificate, and words for what happened."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.batch import label_many, solve_many
from lightning_maxmargin.svm.certify import certify, meets_rows, what_is_known
from lightning_maxmargin.svm.checks import check_labels, check_values
from lightning_maxmargin.svm.generate import Outcome, generate, smallest_of
from lightning_maxmargin.svm.norms.names import NOT_UNIQUE, Norm, check_norm, is_unique, norm_of
from lightning_maxmargin.svm.norms.rounds import generate_norm
from lightning_maxmargin.svm.rational import RATIONAL_NUMBERS, RATIONAL_RANK, floats, solve_rational
from lightning_maxmargin.svm.rows import RowProblem
from lightning_maxmargin.svm.shards import solve_source
from lightning_maxmargin.svm.solution import Solution, unstack
from lightning_maxmargin.svm.sources import Blocks, as_source
from lightning_maxmargin.svm.threads import one_thread
from lightning_maxmargin.svm.warm import begin

__all__ = ["Solution", "solve_att_svm", "solve_label_svm", "solve_problem"]

# A row counts as support when its margin is within this of the right-hand side, relative.
TIGHT = 1e-7
# Largest power of two of a direction or a multiplier.
FARTHEST = 1000
# A smallest row this near to 1 is 1 up to the rounding of margins; scaling would cost one more product with all keys.
SCALED = 1e-13


def solve_att_svm(
    keys: Tensor | Blocks,
    selected: Tensor,
    *,
    queries: Tensor | None = None,
    mask: Tensor | None = None,
    rhs: Tensor | None = None,
    norm: Norm = "l2",
    warm_start: Solution | None = None,
    method: str = "auto",
) -> Solution:
    r"""Attention SVM: ``argmin ||p|| s.t. p'(k_{i,alpha_i} - k_it) >= b_it``, or ``||W||`` with queries z_i.

    The direction that attention converges to when it selects tokens alpha ("Max-Margin Token Selection in Attention
    Mechanism", arXiv 2306.13596; with W "Transformers as Support Vector Machines", arXiv 2308.16898). Each optimizer
    has its norm: gradient descent l2, sign descent linf, spectral descent spectral, training the factors of W = K Q'
    nuclear, mirror descent with potential ``||.||_p^p / p`` lp (arXiv 2410.14581).

    Args:
        keys: (n, T, d), any float dtype. With a leading axis (B, n, T, d) every argument has one. Keys that do not fit
            in memory: a ``numpy.memmap``, a list of blocks (m, T, d) of consecutive sequences, or a function that
            returns them anew for each of the five to ten looks.
        selected: (n,) token indices. queries: (n, dq). mask: (n, T), true on tokens.
        rhs: (n, T) right-hand sides >= 0, default 1.
        norm: "l2" (Frobenius for W), "linf", a number p in (1, inf) for lp of the entries, and with queries "spectral"
            or "nuclear". lp is certified on random data for 1.01 <= p <= 20; further out it may stay "unverified".
        warm_start: an earlier Solution whose support seeds the working set; never changes the answer.
        method: for a leading axis (B, n, T, d), "loop" solves the problems one by one; "auto", "daqp" and "torch" all
            mean the batch on the CPU, which solves a thousand small problems in 12 ms.
    Returns: Solution.
    Raises: InputError on shapes that disagree, indices out of range or on padding, NaN or Inf, an unknown norm.

    Example:
        >>> keys = torch.tensor([[[-0.1, 1.0], [1.0, 0.0], [0.0, 0.0]]])
        >>> solution = solve_att_svm(keys, torch.tensor([0]))
        >>> solution.status, [round(x, 4) for x in solution.direction.tolist()]
        ('certified', [-0.099, 0.9901])
    """
    norm = check_norm(norm, queries is not None)
    source = as_source(keys)
    if source is not None:
        if norm != "l2":
            raise InputError(f"norm {norm!r} needs the keys in memory: pass one tensor, or use 'l2'")
        return solve_source(source, selected, queries, mask, rhs)
    keys = cast(Tensor, keys)
    if np.ndim(keys) == 4:

        def one(b: int, warm: Solution | None) -> Solution:
            z, m, r = (None if x is None else x[b] for x in (queries, mask, rhs))
            return solve_att_svm(keys[b], selected[b], queries=z, mask=m, rhs=r, norm=norm, warm_start=warm)

        # The batch methods know the Euclidean geometry; other norms go one by one.
        return solve_many(keys, selected, queries, mask, rhs, warm_start, method if norm == "l2" else "loop", one)
    problem = RowProblem.attention(keys, selected, queries, mask, rhs)
    return solve_problem(problem, warm_start, "puts the selected tokens first", norm)


def solve_label_svm(
    values: Tensor, labels: Tensor, *, num_classes: int | None = None, warm_start: Solution | None = None
) -> Solution:
    r"""Label SVM without intercept: ``argmin ||v|| s.t. y_i v'x_i >= 1``, or Crammer-Singer for class indices.

    Args:
        values: (n, d). labels: (n,) in {-1, 1} (binary), otherwise class indices 0..K-1 ({0, 1} are two classes).
            With a leading axis (B, n, d) and (B, n) B problems are solved at once and the Solution is stacked.
        num_classes: K, default the largest label + 1.
    Returns: Solution with direction (d,) and dual (n,), or (K, d) and (n, K).
    Raises: InputError on other labels, shapes that disagree, NaN or Inf.

    Example:
        >>> solve_label_svm(torch.tensor([[0.0, 2.0], [0.0, -1.0]]), torch.tensor([1, -1])).direction.tolist()
        [0.0, 1.0]
    """
    if np.ndim(values) == 3 and np.ndim(labels) == 2:

        def one(b: int) -> Solution:
            warm = None if warm_start is None else unstack(warm_start, b)
            return solve_label_svm(values[b], labels[b], num_classes=num_classes, warm_start=warm)

        return label_many(values, labels, num_classes, one)
    n = len(check_values(values))
    _, classes = check_labels(labels, n, num_classes)
    if classes is not None:
        problem = RowProblem.multiclass(values, labels, classes)
        return solve_problem(problem, warm_start, "separates the classes")
    problem = RowProblem.binary(values, labels)
    solution = solve_problem(problem, _as_pairs(warm_start), "separates the labels")
    return replace(solution, dual=solution.dual[:, 1].clone(), support=solution.support[:, 0].clone())


def solve_problem(
    problem: RowProblem, warm: Solution | None = None, goal: str = "meets the rows", norm: Norm = "l2"
) -> Solution:
    """Solve rows and right-hand sides in a checked norm; ``goal`` completes "no direction ..." in messages.

    Raises: InputError where sizes differ by so much that neither floating point nor, for many rows, rational arithmetic
        can tell.
    """
    if not (problem.rhs > 0).any():
        solution = _nothing_to_do(problem)
    elif problem.extreme:
        solution = _at_extremes(problem, warm, goal, norm)
    else:
        with one_thread():
            solution = _solve(problem, warm, goal, norm)
    return solution if norm == "l2" else replace(solution, norm=norm, unique=is_unique(norm))


def _solve(problem: RowProblem, warm: Solution | None, goal: str, norm: Norm) -> Solution:
    start = None if warm is None else begin(problem, warm)
    if start is not None and start.answer is not None and norm == "l2":
        found = _solved(problem, start.answer, goal, norm)
        if found.status == "certified":
            return found
    outcome = generate(problem) if start is None else generate(problem, start.rows, start.active)
    if outcome.infeasible:
        return _infeasible(problem, outcome, goal)
    solution = _solved(problem, outcome, goal, "l2") if norm == "l2" else None
    if (solution is None and not meets_rows(problem, outcome.direction)) or (
        solution and solution.status != "certified"
    ):
        second = second_opinion(problem, outcome)
        if second is not None and second.infeasible:
            return _infeasible(problem, second, goal)
        if second is not None:
            outcome = second
            if solution is not None:
                better = _solved(problem, outcome, goal, "l2")
                solution = better if better.gap <= solution.gap else replace(solution, message=better.message)
    if solution is not None:
        return solution
    return _solved(problem, generate_norm(problem, norm, outcome), goal, norm)


def _at_extremes(problem: RowProblem, warm: Solution | None, goal: str, norm: Norm) -> Solution:
    """Sizes that float64 cannot square: over a power of two, or where they differ by too much without rounding."""
    found = problem.normalised()
    if found is not None:
        scaled, rows, rhs = found
        return rescaled(solve_problem(scaled, None, goal, norm), rows, rhs)
    answer = second_opinion(problem, None) if norm == "l2" else None
    if answer is None:
        raise InputError(
            "keys, queries or right-hand sides differ in size by more than float64 can square: rescale features or rows"
        )
    return _infeasible(problem, answer, goal) if answer.infeasible else _solved(problem, answer, goal, norm)


def rescaled(solution: Solution, rows: int, rhs: int) -> Solution:
    """The Solution for rows ``2^rows`` and right-hand sides ``2^rhs`` times as large."""
    if solution.status == "infeasible":
        return replace(solution, dual=_shifted(solution.dual, -rhs)[0])
    direction, clipped = _shifted(solution.direction, rhs - rows)
    dual, _ = _shifted(solution.dual, rhs - 2 * rows if solution.norm == "l2" else -rows)
    with np.errstate(over="ignore"):
        margin = float(np.ldexp(solution.margin, rows - rhs))
    words = f"; the direction is 2^{-clipped} times as long, past the end of float64" if clipped else ""
    return replace(solution, direction=direction, dual=dual, margin=margin, message=solution.message + words)


def _shifted(x: Tensor, exponent: int) -> tuple[Tensor, int]:
    """x 2^exponent, and by which power of two less or more where float64 would not hold it."""
    top = int(np.frexp(float(x.abs().max()) if x.numel() else 0.0)[1])
    allowed = min(max(exponent, -FARTHEST - top), FARTHEST - top)
    return torch.from_numpy(np.ldexp(x.numpy(), allowed)), exponent - allowed


def second_opinion(problem: RowProblem, outcome: Outcome | None) -> Outcome | None:
    """The answer in rational arithmetic, rounded at the end; None where the rows are too many for it."""
    if not problem.is_small(RATIONAL_NUMBERS) or min(problem.dim, int(problem.live.sum())) > RATIONAL_RANK:
        return None
    ids = problem.ids
    rows = problem.rational(ids)
    start: list[int] = []
    if outcome is not None and 0 < np.count_nonzero(outcome.lam > 0) <= problem.dim:
        start = np.flatnonzero(np.isin(ids, outcome.ids[outcome.lam > 0])).tolist()
    answer = solve_rational(rows, start)
    lam, exponent = floats(rows.multipliers(answer.lam))
    if answer.w is None:
        value = float(lam @ problem.rhs.ravel()[ids])
        return Outcome(ids, lam / value if value > 0 else lam, np.zeros(problem.shape), True, 0.0, answer.steps)
    w, shift = floats(answer.w)
    within = min(max(shift, -FARTHEST), FARTHEST)
    margin = 1 / float(np.ldexp(np.linalg.norm(w), within))
    note = f"separable with margin {margin:.3g} in exact arithmetic, but float64 holds no direction that shows it"
    # One power of two off direction and multipliers, which no certificate minds, keeps both in float64.
    lam = np.ldexp(lam, min(max(exponent + within - shift, -FARTHEST), FARTHEST))
    return Outcome(ids, lam, np.ldexp(w, within).reshape(problem.shape), False, 0.0, answer.steps, note=note)


def _nothing_to_do(problem: RowProblem) -> Solution:
    words = "no token competes with a selected one" if not problem.live.any() else "every right-hand side is 0"
    return Solution(
        "certified",
        torch.zeros(problem.shape, dtype=torch.float64),
        float("inf"),
        torch.zeros(problem.live.shape, dtype=torch.float64),
        torch.zeros((0, 2), dtype=torch.int64),
        0.0,
        0.0,
        0,
        f"{words}: the zero direction meets all rows",
        problem.merged,
    )


def _infeasible(problem: RowProblem, outcome: Outcome, goal: str) -> Solution:
    dual = np.zeros(problem.live.shape)
    dual.ravel()[outcome.ids] = outcome.lam
    used = int((outcome.lam > 0).sum())
    return Solution(
        "infeasible",
        torch.zeros(problem.shape, dtype=torch.float64),
        0.0,
        torch.from_numpy(dual),
        torch.from_numpy(np.argwhere(dual > 0)),
        float("inf"),
        outcome.violation,
        outcome.rounds,
        f"no direction {goal}: the weights in `dual` combine {used} rows to zero",
        problem.merged,
    )


def _solved(problem: RowProblem, outcome: Outcome, goal: str, norm: Norm) -> Solution:
    p, lam, margins = outcome.direction, outcome.lam, outcome.margins
    margins = problem.margins(p) if margins is None else margins
    on, smallest = problem.rhs > 0, smallest_of(problem, margins)
    scale = 1 / smallest if smallest > 0 else 1.0
    if not np.isfinite(scale) or abs(scale - 1) <= SCALED:
        scale = 1.0
    if scale != 1:
        p, margins = p * scale, None
    dual = np.zeros(problem.live.shape)
    dual.ravel()[outcome.ids] = lam * scale if norm == "l2" else lam
    margins = problem.margins(p) if margins is None else margins
    gap, violation, status = certify(problem, p, dual, norm, margins)
    length = float(np.linalg.norm(p))
    tight = problem.live & (margins - problem.rhs <= TIGHT * np.where(on, problem.rhs, problem.row_norms * length))
    message = f"certified: relative gap {gap:.1e}" + ("" if is_unique(norm) else f"; {NOT_UNIQUE}")
    if status != "certified":
        known = outcome.note or what_is_known(problem, p, dual, goal, norm)
        message = f"unverified: {known}"
        if smallest <= 0:
            gap, violation = 1.0, 1.0
    return Solution(
        status,
        torch.from_numpy(p),
        1 / norm_of(p, norm) if length > 0 and smallest > 0 else 0.0,
        torch.from_numpy(dual),
        torch.from_numpy(np.argwhere(tight)),
        gap,
        violation,
        outcome.rounds,
        message,
        problem.merged,
    )


def _as_pairs(warm: Solution | None) -> Solution | None:
    if warm is None or not isinstance(warm.support, Tensor) or warm.support.ndim != 1:
        return None
    dual = torch.stack([torch.zeros_like(warm.dual), warm.dual], dim=-1)
    return replace(warm, support=torch.stack([warm.support, torch.ones_like(warm.support)], dim=1), dual=dual)
