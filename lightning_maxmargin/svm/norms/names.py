"""The norms that a limit problem can be stated in, their duals, and the margin relative to the optimum in each.

A norm is named "l2" (Euclidean for p, Frobenius for W), "linf" (largest entry), "spectral" or "nuclear" (largest, sum
of singular values), or is a number p with 1 < p < inf for ``||W||_p = (sum |W_jk|^p)^(1/p)``.
The dual norm is ``||M||_dual = max <M, W> over ||W|| <= 1``: every W that meets the rows and every lam >= 0 have
``||W|| >= b'lam / ||sum lam row||_dual``, the bound that certificates rest on.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.doubles import to_array
from lightning_maxmargin.svm.norms.registry import Norm as Norm
from lightning_maxmargin.svm.norms.registry import Value, check_norm, entry_of
from lightning_maxmargin.svm.rows import Array, RowProblem
from lightning_maxmargin.svm.solution import Solution


def is_unique(norm: Norm) -> bool | None:
    """True where the norm is strictly convex, so that its optimum is unique; None where nothing is known."""
    return entry_of(norm).unique


def norm_of(W: Tensor | Array, norm: Norm) -> float:
    """||W|| of p (d,) or W (d, dq), computed in float64.

    Args:
        W: (d,) or (d, dq), any float dtype.
        norm: as in ``solve_att_svm``.

    Raises:
        InputError: an unknown norm, or a norm of matrices for a vector.

    Example:
        >>> import torch
        >>> W = torch.tensor([[3.0, 0.0], [0.0, -4.0]])
        >>> [round(norm_of(W, norm), 6) for norm in ("l2", "linf", "spectral", "nuclear", 3)]
        [5.0, 4.0, 4.0, 7.0, 4.497941]
    """
    x = to_array(W, "W")
    return _value(x, entry_of(check_norm(norm, x.ndim == 2)).value)


def dual_norm_of(M: Tensor | Array, norm: Norm) -> float:
    """max <M, W> over ||W|| <= 1: l2 for l2, l1 for linf, nuclear for spectral and back, lq with 1/p + 1/q = 1 for lp.

    Args:
        M: (d,) or (d, dq), any float dtype; computed in float64.
        norm: as in ``solve_att_svm``.

    Raises:
        InputError: as ``norm_of``.

    Example:
        >>> import torch
        >>> M = torch.tensor([[3.0, 0.0], [0.0, -4.0]])
        >>> [round(dual_norm_of(M, norm), 6) for norm in ("l2", "linf", "spectral", "nuclear", 1.5)]
        [5.0, 7.0, 7.0, 4.0, 4.497941]
    """
    x = to_array(M, "M")
    return _value(x, entry_of(check_norm(norm, x.ndim == 2)).dual)


def _value(x: Array, of_size_one: Value) -> float:
    size = float(np.abs(x).max(initial=0.0))
    if size == 0 or not np.isfinite(x).all():
        return size if np.isfinite(size) else math.inf
    # Powers and squares of extreme numbers would under- or overflow.
    return size * float(of_size_one(x / size))


def relative_margin_in(W: Tensor | Array, problem: RowProblem, solution: Solution) -> float | None:
    r"""``g(W) ||W_svm||`` with ``g(W) = min <W, row_it> / b_it over b_it > 0, by ||W||``, in the solution's norm.

    At most 1, and 1 exactly at an optimum, also where optima are not unique ("Optimizing Attention with Mirror
    Descent", arXiv 2410.14581, judges lp geometries by their own SVM). Rows with b = 0 do not enter.

    Args:
        W: (d,) or (d, dq).
        problem: the rows.
        solution: its solution in any norm.

    Returns:
        The ratio; None where the solution has no margin (infeasible, or nothing to separate). 0 for W = 0.

    Raises:
        InputError: W has another shape than the direction, NaN or Inf.

    Example:
        >>> import torch
        >>> from lightning_maxmargin.svm.api import solve_att_svm
        >>> keys, selected = torch.tensor([[[2.0, 1.0], [0.0, 0.0]]]), torch.tensor([0])
        >>> solution = solve_att_svm(keys, selected, norm="linf")
        >>> problem = RowProblem.attention(keys, selected)
        >>> [round(relative_margin_in(torch.tensor(W), problem, solution), 6) for W in ([1.0, 1.0], [1.0, 0.0])]
        [1.0, 0.666667]
    """
    x = to_array(W, "W")
    if x.shape != problem.shape:
        raise InputError(f"W has shape {list(x.shape)} and the problem's direction {list(problem.shape)}: pass its own")
    if not np.isfinite(x).all():
        raise InputError("W holds NaN or Inf: pass finite numbers")
    margin = float(solution.margin)
    on = problem.rhs > 0
    if not 0 < margin < math.inf or not on.any():
        return None
    length = norm_of(x, solution.norm)
    if length == 0:
        return 0.0
    return float((problem.margins(x / length)[on] / problem.rhs[on]).min()) / margin
