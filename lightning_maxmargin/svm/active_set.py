"""Several kept tokens and finite parts: limit problems with equalities among their rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.checks import check_keys, check_mask
from lightning_maxmargin.svm.custom import shortest
from lightning_maxmargin.svm.doubles import to_array
from lightning_maxmargin.svm.equalities import EqualityRows
from lightning_maxmargin.svm.rows import RowProblem
from lightning_maxmargin.svm.solution import Solution

Mask = npt.NDArray[np.bool_]


def solve_kept_svm(
    keys: Tensor, kept: Tensor, *, queries: Tensor | None = None, mask: Tensor | None = None
) -> Solution:
    r"""The direction W_dir in which attention grows when it keeps several tokens O_i of each sequence.

    ``argmin ||W|| s.t. (k_o - k_t)' W z_i = 0 for o, t in O_i, >= 1 for o in O_i and t outside``: with it the weights
    outside O_i vanish while their ratios inside stay, W ~ W_fin + R W_dir ("Transformers as Support Vector Machines",
    arXiv 2308.16898). With one kept token each it is the attention SVM. Rows are formed explicitly.

    Args:
        keys: (n, T, d).
        kept: (n, T), true on the tokens O_i.
        queries: (n, dq), for W.
        mask: (n, T), true on tokens.

    Returns:
        Solution; row (i, t) is the first kept token of sequence i against t, so that dual (n, T) has any sign on kept
        tokens and support holds the tight tokens outside. A token equal to a kept one is merged with it.

    Raises:
        InputError: shapes that disagree, a sequence without kept token, kept padding, NaN or Inf.

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
    stated = EqualityRows(rows, np.where(equal, 0.0, 1.0), equal)
    return _in_tokens(shortest(stated, "keeps these tokens and no others"), problem, ids, merged)


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

    Args:
        keys: (n, T, d).
        kept: (n, T), true on the tokens O_i.
        probabilities: s (n, T) > 0 on kept tokens, up to a factor in each sequence.
        queries: (n, dq), for W.
        mask: (n, T), true on tokens.

    Returns:
        Solution as ``solve_kept_svm``; "infeasible" where no W has these ratios.

    Raises:
        InputError: as ``solve_kept_svm``, and kept tokens whose probability is not positive.

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
    stated = EqualityRows(rows, rhs, np.ones(len(ids), bool))
    return _in_tokens(shortest(stated, "has these ratios"), problem, ids, 0)


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


def _in_tokens(solution: Solution, problem: RowProblem, ids: npt.NDArray[np.int64], merged: int) -> Solution:
    """The Solution of rows ``ids`` with dual and support by (sequence, token) and the direction's own shape."""
    T = problem.live.shape[1]
    return replace(
        solution,
        direction=solution.direction.reshape(problem.shape),
        dual=torch.from_numpy(problem.spread(ids, solution.dual.numpy())),
        support=torch.from_numpy(np.stack(np.divmod(ids[solution.support.numpy()], T), axis=1)),
        merged=merged,
    )
