"""Rows that no direction meets, told by an analytic centre: the maximum of ``sum_i log(1 + <row_i, y>)``.

Where a direction y meets the rows the sum grows without end along it. Where none does, it has a maximum, and there its
gradient, the combination of the rows with ``u_i = 1 / (1 + <row_i, y>) > 0``, is zero: a Farkas vector whose entries
are all far from zero, so that a small correction proves it. Newton's method, damped by its decrement, is at most a few
steps away from it wherever it begins (Nesterov and Nemirovskii, Interior-Point Polynomial Algorithms, 1994, 2.2).
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from lightning_maxmargin.svm.rows import EPS, Array

#: Steps after which there is no answer: 3,000 labels in 384 dimensions took 2 or 3.
MAX_STEPS = 12
#: The share of an entry that a step must leave: less is rounding of a step to zero.
POSITIVE = 1e-6


def combined_to_zero(A: Array) -> Array | None:
    """u > 0 with ``u @ A`` zero to rounding; None where it is not at hand, as where a direction meets the rows.

    Of 1,536 rows of 384 it takes .03 s, an interior point of the whole problem with its finish .3.

    Args:
        A: (m, r), rows of unit norm, more than dimensions.

    Example:
        >>> u = combined_to_zero(np.array([[1.0], [-1.0], [-1.0]]))
        >>> bool(u.min() > 0), bool(abs(u @ [1, -1, -1]) < 1e-15), combined_to_zero(np.ones((2, 1))) is None
        (True, True, True)
    """
    y, last = np.zeros(A.shape[1]), np.inf
    for _ in range(MAX_STEPS):
        z = 1 + A @ y
        u = 1 / z
        gradient = u @ A
        half = A * u[:, None]
        hessian = half.T @ half
        # Rows may span less than all dimensions, as those of classes do; the gradient is in their span.
        hessian.ravel()[:: len(hessian) + 1] += len(hessian) * EPS * np.trace(hessian)
        try:
            factor = cho_factor(hessian, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError:
            return None
        step = cho_solve(factor, gradient, check_finite=False)
        decrement, along = float(np.sqrt(max(gradient @ step, 0.0))), A @ step
        # The gradient's linear model, which the whole step makes zero, combines the rows with u_i (1 - u_i along_i).
        left = 1 - u * along
        if (left > POSITIVE).all():
            # Less what the shift of the diagonal and rounding have left of the combination.
            whole = u * left
            return whole - u * u * (A @ cho_solve(factor, whole @ A, check_finite=False))
        # Towards a maximum it falls; where a direction meets the rows it grows.
        if not decrement < last or not np.isfinite(decrement):
            return None
        last = decrement
        falling = along < 0
        room = 0.9 * float((z[falling] / -along[falling]).min()) if falling.any() else 1.0
        y = y + max(1 / (1 + decrement), min(1.0, room)) * step
    return None
