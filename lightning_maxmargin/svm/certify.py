"""Certificates, computed from the rows alone and independent of any solver."""

from __future__ import annotations

import numpy as np

from lightning_maxmargin.svm.norms import Norm, dual_norm_of, norm_of
from lightning_maxmargin.svm.problem import EPS, Array, RowProblem

GAP_TOL = 1e-8
VIOLATION_TOL = 1e-7
FARKAS_TOL = 1e-12


def certify(
    problem: RowProblem, direction: Array, dual: Array, norm: Norm = "l2", margins: Array | None = None
) -> tuple[float, float, str]:
    r"""Gap, violation and status of a direction and multipliers from any solver.

    With right-hand side 1: ``P = .5||p||^2 / min(D p)^2``, ``Q = .5 (sum lam)^2 / ||D'lam||^2``, ``gap = 1 - Q/P``.
    In general p is scaled by the largest b/row over rows with b > 0, ``Q = .5 (b'lam)^2 / ||D'lam||^2``, and
    ``violation = max(0, -min row / (||row|| ||p||))`` over rows with b = 0. Margins enter with their rounding taken
    off, so that what float64 cannot tell is not certified. In another norm ``P = ||W|| / min(row/b)`` and
    ``Q = b'lam / ||sum lam row||_dual``, without squares.

    Args: direction (d,) or (d, dq), dual (n, T) (zero off the live rows), both float64;
        norm as in ``solve_att_svm``; margins, ``problem.margins`` of this very direction, where they are known.
    Returns: gap (1 when nothing is shown), violation (relative), "certified" | "unverified".

    Example:
        >>> import torch
        >>> problem = RowProblem.attention(torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]), torch.tensor([0]))
        >>> certify(problem, np.array([0.0, 1.0]), np.array([[0.0, 1.0]]))[2]
        'certified'
    """
    live, b = problem.live, problem.rhs
    if not (np.isfinite(direction).all() and np.isfinite(dual).all()):
        return 1.0, 1.0, "unverified"
    length = float(np.linalg.norm(direction))
    positive, zero = live & (b > 0), live & (b == 0)
    if not positive.any():
        return (0.0, 0.0, "certified") if length == 0 else (1.0, 0.0, "unverified")
    if length == 0:
        return 1.0, 1.0, "unverified"
    margins = problem.margins(direction) if margins is None else margins
    lower = margins - rounding(problem, direction)
    smallest = float((lower[positive] / b[positive]).min())
    violation = _violation(problem, margins, zero, length)
    gap = _gap(problem, dual, direction, smallest, norm)
    good = gap <= GAP_TOL and violation <= VIOLATION_TOL and bool((dual >= 0).all()) and not dual[~live].any()
    return gap, violation, "certified" if good else "unverified"


def rounding(problem: RowProblem, direction: Array) -> Array:
    """What float64 may have lost in each explicit margin: (n, T)."""
    p = problem.projected(direction)
    length = np.linalg.norm(p) if p.ndim == 1 else np.linalg.norm(p, axis=1)[:, None]
    size = problem.row_norms
    if problem.queries is not None:
        z = np.linalg.norm(problem.queries, axis=1)[:, None]
        size = np.divide(size, z, out=np.zeros_like(size), where=z > 0)
    return 4 * EPS * size * length


def _violation(problem: RowProblem, margins: Array, zero: Array, length: float) -> float:
    if not zero.any():
        return 0.0
    size = problem.row_norms[zero] * length
    relative = np.divide(-margins[zero], size, out=np.zeros_like(size), where=size > 0)
    return max(0.0, float(relative.max()))


def _gap(problem: RowProblem, dual: Array, direction: Array, smallest: float, norm: Norm) -> float:
    ids = np.flatnonzero(dual)
    if smallest <= 0 or len(ids) == 0:
        return 1.0
    lam = dual.ravel()[ids]
    # Extreme scales would under- or overflow in the squares.
    lam = lam / np.abs(lam).max()
    combined = dual_norm_of(problem.combine(ids, lam), norm)
    value = float(lam @ problem.rhs.ravel()[ids])
    if combined == 0 or value <= 0:
        return 1.0
    ratio = value / combined * (smallest / norm_of(direction, norm))
    return 1.0 - (ratio**2 if norm == "l2" else ratio)


def certify_infeasible(problem: RowProblem, dual: Array) -> tuple[float, str]:
    """||D'u|| relative to sum(u ||row||) for u = dual (n, T), and "infeasible" | "unverified".

    "infeasible" needs u >= 0 on live rows only, b'u > 0 and a violation of at most 1e-12.
    """
    ids = np.flatnonzero(dual)
    u = dual.ravel()[ids]
    value = float(u @ problem.rhs.ravel()[ids])
    if not np.isfinite(dual).all() or (dual < 0).any() or dual[~problem.live].any() or value <= 0:
        return 1.0, "unverified"
    weight = float(u @ problem.row_norms.ravel()[ids])
    length = float(np.linalg.norm(problem.combine(ids, u)))
    violation = length / weight if weight > 0 else (0.0 if length == 0 else 1.0)
    return violation, "infeasible" if violation <= FARKAS_TOL else "unverified"
