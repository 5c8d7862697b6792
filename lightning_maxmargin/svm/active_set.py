"""Several kept tokens, finite parts and graph-SVM rows: limit problems with equalities among their rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.certify import TOLERANCES
from lightning_maxmargin.svm.checks import check_finite, check_keys, check_mask, to_array
from lightning_maxmargin.svm.equalities import EqualityRows, certify_equalities, solve_equalities
from lightning_maxmargin.svm.rows import Array, RowProblem
from lightning_maxmargin.svm.solution import Solution, Status, answered, infeasible
from lightning_maxmargin.svm.threads import one_thread

Mask = npt.NDArray[np.bool_]


def solve_rows(rows: Tensor, rhs: Tensor, equal: Tensor) -> Solution:
    r"""``argmin ||w|| s.t. <w, row_i> = rhs_i where equal_i, <w, row_i> >= rhs_i elsewhere``, any signs in rhs.

    The general door: for example the graph SVM of next-token prediction ("Mechanics of Next Token Prediction with
    Self-Attention", arXiv 2403.08081) has equalities with right-hand side 0 inside a strongly connected component of
    the token-priority graph and inequalities with 1 along strict priority.

    Args: rows (m, d), rhs (m,), equal (m,) of 0 and 1; any float dtype, solved in float64.
    Returns: Solution with direction (d,), dual (m,) (any sign on equalities, w = sum dual * row, or the Farkas vector),
        support (s,) the tight inequalities, violation the most that any row misses by, equalities included.
    Raises: InputError on shapes that disagree, NaN or Inf.

    Example:
        >>> rows, rhs = torch.tensor([[1.0, 1.0], [1.0, 0.0]]), torch.tensor([0.0, 1.0])
        >>> [round(x, 12) for x in solve_rows(rows, rhs, torch.tensor([True, False])).direction.tolist()]
        [1.0, -1.0]
    """
    x, b, e = to_array(rows, "rows"), to_array(rhs, "rhs"), to_array(equal, "equal")
    if x.ndim != 2 or 0 in x.shape:
        raise InputError(f"rows have shape {list(x.shape)}: pass (rows, features), none of them empty")
    for name, value in (("rhs", b), ("equal", e)):
        if value.shape != (len(x),):
            raise InputError(f"{name} has shape {list(value.shape)} for {len(x)} rows: pass one number each")
    check_finite(x, "rows")
    check_finite(b, "rhs")
    if not np.isin(e, (0, 1)).all():
        raise InputError("equal holds numbers other than 0 and 1: pass true for equalities")
    solution, tight = _solve(x, b, e.astype(bool), "meets the rows")
    return replace(solution, support=torch.from_numpy(np.flatnonzero(tight)))


def solve_kept_svm(
    keys: Tensor, kept: Tensor, *, queries: Tensor | None = None, mask: Tensor | None = None
) -> Solution:
    r"""The direction W_dir in which attention grows when it keeps several tokens O_i of each sequence.

    ``argmin ||W|| s.t. (k_o - k_t)' W z_i = 0 for o, t in O_i, >= 1 for o in O_i and t outside``: with it the weights
    outside O_i vanish while their ratios inside stay, W ~ W_fin + R W_dir ("Transformers as Support Vector Machines",
    arXiv 2308.16898). With one kept token each it is the attention SVM. Rows are formed explicitly.

    Args: keys (n, T, d), kept (n, T) true on O_i, queries (n, dq) for W, mask (n, T) true on tokens.
    Returns: Solution; row (i, t) is the first kept token of sequence i against t, so that dual (n, T) has any sign on
        kept tokens and support holds the tight tokens outside. A token equal to a kept one is merged with it.
    Raises: InputError on shapes that disagree, a sequence without kept token, kept padding, NaN or Inf.

    Example:
        >>> keys = torch.tensor([[[1.0, 1.0], [1.0, -1.0], [0.0, 0.0]]])
        >>> solve_kept_svm(keys, torch.tensor([[True, True, False]])).direction.tolist()
        [1.0, 0.0]
    """
    problem, inside = _rows_of(keys, kept, queries, mask)
    live = problem.live & ~_equal_to_kept(problem, inside)
    merged = problem.merged + int((problem.live & ~live).sum())
    ids = np.flatnonzero(live)
    equal = inside.ravel()[ids]
    rows = problem.rows(ids)
    solution, tight = _solve(rows, np.where(equal, 0.0, 1.0), equal, "keeps these tokens and no others")
    return _in_tokens(solution, problem, ids, tight, merged)


def solve_finite_part(
    keys: Tensor,
    kept: Tensor,
    probabilities: Tensor,
    *,
    queries: Tensor | None = None,
    mask: Tensor | None = None,
) -> Solution:
    r"""W_fin, which sets the ratios among kept tokens: ``argmin ||W|| s.t. (k_o - k_t)' W z_i = log(s_io / s_it)``.

    The finite part of W ~ W_fin + R W_dir ("Transformers as Support Vector Machines", arXiv 2308.16898).

    Args: keys (n, T, d), kept (n, T), probabilities s (n, T) > 0 on kept tokens, up to a factor in each sequence;
        queries (n, dq), mask (n, T).
    Returns: Solution as ``solve_kept_svm``; "infeasible" where no W has these ratios.
    Raises: InputError as ``solve_kept_svm``, and on kept tokens whose probability is not positive.

    Example:
        >>> keys = torch.tensor([[[1.0, 1.0], [1.0, -1.0], [0.0, 0.0]]])
        >>> s = torch.tensor([[0.75, 0.25, 0.0]])
        >>> W = solve_finite_part(keys, torch.tensor([[True, True, False]]), s).direction
        >>> round(float(torch.exp(2 * W[1])), 6)
        3.0
    """
    problem, inside = _rows_of(keys, kept, queries, mask)
    s = to_array(probabilities, "probabilities")
    if s.shape != inside.shape:
        raise InputError(f"probabilities have shape {list(s.shape)} for {list(inside.shape)} tokens: pass one each")
    bad = np.argwhere(inside & ~(np.isfinite(s) & (s > 0)))
    if len(bad):
        i, t = bad[0]
        raise InputError(f"probability of kept token {t} of sequence {i} is {s[i, t]:g}: pass positive numbers")
    chosen = (np.arange(len(s)), problem.selected)
    others = inside.copy()
    others[chosen] = False
    ids = np.flatnonzero(others)
    logs = np.log(np.where(inside, s, 1.0))
    rows = np.where(problem.live.ravel()[ids, None], problem.rows(ids), 0.0)
    rhs = (logs[chosen][:, None] - logs).ravel()[ids]
    solution, tight = _solve(rows, rhs, np.ones(len(ids), bool), "has these ratios")
    return _in_tokens(solution, problem, ids, tight, 0)


def _rows_of(keys: Tensor, kept: Tensor, queries: Tensor | None, mask: Tensor | None) -> tuple[RowProblem, Mask]:
    """Rows of the first kept token against all others, and the checked kept set."""
    k = check_keys(keys)
    live = check_mask(mask, k)
    o = to_array(kept, "kept")
    if o.shape != live.shape:
        raise InputError(f"kept has shape {list(o.shape)} and keys {list(k.shape)}: pass a kept set of (n, T)")
    if not np.isin(o, (0, 1)).all():
        raise InputError("kept holds numbers other than 0 and 1: pass true for kept tokens")
    inside = o.astype(bool)
    empty, padding = np.flatnonzero(~inside.any(1)), np.argwhere(inside & ~live)
    if len(empty):
        raise InputError(f"sequence {empty[0]} keeps no token: mark at least one in kept")
    if len(padding):
        i, t = padding[0]
        raise InputError(f"kept token {t} of sequence {i} is padding: keep tokens that the mask keeps")
    return RowProblem.attention(keys, torch.from_numpy(inside.argmax(1)), queries, mask), inside


def _equal_to_kept(problem: RowProblem, inside: Mask) -> Mask:
    """Tokens outside O_i that equal one of O_i (n, T): their row would read 0 >= 1."""
    equal = np.zeros_like(inside)
    for i in np.flatnonzero(inside.sum(1) > 1):
        k = problem.keys[i]
        equal[i] = (k[:, None] == k[None, inside[i]]).all(-1).any(-1)
    return equal & ~inside


def _solve(rows: Array, rhs: Array, equal: Mask, goal: str) -> tuple[Solution, Mask]:
    """A Solution over the rows in order, its support empty, and which inequalities are tight."""
    problem = EqualityRows(rows, rhs, equal)
    with one_thread():
        answer = solve_equalities(problem)
    gap, violation, status = certify_equalities(problem, answer)
    length = float(np.linalg.norm(answer.w))
    size = np.linalg.norm(rows, axis=1) * length + np.abs(rhs)
    tight = ~equal & (np.abs(rows @ answer.w - rhs) <= TOLERANCES.tight * size) & (status is not Status.INFEASIBLE)
    nothing = np.zeros(0, np.int64)
    if status is Status.INFEASIBLE:
        return infeasible(answer.w.shape, answer.dual, nothing, goal, violation, answer.rounds, 0), tight
    solution = answered(
        status,
        answer.w,
        answer.dual,
        nothing,
        margin=0.0 if answer.infeasible else (1 / length if length > 0 else float("inf")),
        gap=1.0 if answer.infeasible else gap,
        violation=violation,
        rounds=answer.rounds,
        known=f"no direction was shown to be the shortest that {goal}, nor that none does",
    )
    return solution, tight


def _in_tokens(
    solution: Solution, problem: RowProblem, ids: npt.NDArray[np.int64], tight: Mask, merged: int
) -> Solution:
    """The Solution of rows ``ids`` with dual and support by (sequence, token) and the direction's own shape."""
    dual = np.zeros(problem.live.shape)
    dual.ravel()[ids] = solution.dual.numpy()
    T = problem.live.shape[1]
    return replace(
        solution,
        direction=solution.direction.reshape(problem.shape),
        dual=torch.from_numpy(dual),
        support=torch.from_numpy(np.stack(np.divmod(ids[tight], T), axis=1)),
        merged=merged,
    )
