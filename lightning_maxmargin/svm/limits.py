"""What the limits of joint training ask of the attention's rows, for B instances in step; ``joint`` says which.

Gamma_i = y_i v'x_i/||v|| are the label margins of the selected values, Gamma the smallest of an instance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from lightning_maxmargin.svm.certificate import TOLERANCES
from lightning_maxmargin.svm.rows import Array, Index

Mask = npt.NDArray[np.bool_]
MAX_NEWTON = 60
#: Of right-hand sides (b, n) for instances (b,): ||p|| (b,), its slope in each sequence's (b, n), certified (b,).
Solve = Callable[[Array, Index], tuple[Array, Array, Mask]]


def label_margins(v: Array, x: Array, labels: Array) -> tuple[Array, Mask]:
    """Gamma_i (B, n) of heads v (B, d) on x (B, n, d), labels (B, n) in {-1, 1}; and whether they separate (B,)."""
    # Over its largest entry, whose square would under- or overflow where values are extreme.
    top = np.abs(v).max(axis=1)
    v = v / np.where(top > 0, top, 1.0)[:, None]
    length = np.linalg.norm(v, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        margins = labels * np.einsum("bnd,bd->bn", x, v) / length[:, None]
    return margins, (length > 0) & (np.nan_to_num(margins).min(axis=1) > 0)


def spare_margins(margins: Array) -> Array:
    """Gamma_i - Gamma (B, n), 0 where two differ by rounding, which a large norm_ratio would make a difference."""
    smallest = margins.min(axis=1, keepdims=True)
    return np.where(margins - smallest <= TOLERANCES.label_rounding * smallest, 0.0, margins - smallest)


def relaxed_rhs(margins: Array) -> Array:
    """Right-hand side 1 for inputs that support the label SVM, 0 for the others: (B, n)."""
    smallest = margins.min(axis=1, keepdims=True)
    return (margins - smallest <= TOLERANCES.support * smallest).astype(np.float64)


def unit_norm_root(spare: Array, tau: Array, going: Mask, solve: Solve) -> Array:
    r"""p(tau) / tau at the root of ||p(tau)|| = 1, p(tau) the solution for b_it = max(0, tau - spare_i).

    ||p(tau)|| in any norm is convex and increasing, and its slope in b_it is a multiplier: lam_it/||p|| of the
    Euclidean problem, whose objective is half a square, and the dual solution of dual norm 1 of others (envelope
    theorem). So Newton from the right decreases to the root. The bracket guards the steps; the problems are stated with
    largest b = 1, which leaves the slopes what they are.

    Args: spare (B, n) = rho (Gamma_i - Gamma), tau (B,) to start from, going (B,) for whom there is a root; solve is
        called with the right-hand sides of those who are still on the way, last with those at the root.
    Returns: how far each norm is from 1 (B,), inf where there was nothing to solve.
    """
    tau, going = tau.copy(), going.copy()
    low, high, off = np.zeros_like(tau), np.full_like(tau, np.inf), np.full_like(tau, np.inf)
    for _ in range(MAX_NEWTON):
        at = np.flatnonzero(going)
        if len(at) == 0:
            break
        t, own = tau[at], spare[at]
        norms, slopes, certified = solve(np.where(own == 0, 1.0, np.maximum(0.0, 1 - own / t[:, None])), at)
        length = t * norms
        off[at] = np.abs(length - 1)
        low[at], high[at] = np.where(length < 1, t, low[at]), np.where(length < 1, high[at], t)
        slope = (slopes * (own < t[:, None])).sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = t - (length - 1) / slope
        middle = np.where(np.isfinite(high[at]), 0.5 * (low[at] + high[at]), 2 * t)
        step = np.where((step > low[at]) & (step < high[at]), step, middle)
        going[at] = certified & (off[at] > 0.1 * TOLERANCES.unit) & (step != t)
        tau[at] = step
    return off
