"""A primal-dual interior point for ``min .5||A'lam||^2 - b'lam  over  lam >= 0``.

Mehrotra's predictor-corrector on the smaller of the two normal systems. It is the first half of solving a large
small problem: its answer tells which rows are active, and the active-set finish computes them exactly. On rows that
no direction separates it ends in the middle of the Farkas vectors, where a projection makes one exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cho_factor, cho_solve

Array = npt.NDArray[np.float64]
# Share of the way to the boundary that a step takes.
STEP = 0.995
# With one more column b/SLACK_PRICE the rows share a slack whose price is half its square: there always is a solution.
SLACK_PRICE = 1e3
Solver = Callable[[Array], tuple[Array, Array]]


class Rows:
    """Products with A A' for explicit rows A (m, r) or their Gram (m, m), whichever is the smaller system."""

    def __init__(self, A: Array | None = None, gram: Array | None = None) -> None:
        # m^3/3 against m r^2 + r^3/3 operations for each factor.
        small = A is not None and A.shape[0] <= 1.5 * A.shape[1]
        self.A: Array | None = None if small else A
        self.gram: Array | None = A @ A.T if A is not None and small else gram

    def times(self, lam: Array) -> Array:
        """A A'lam (m,)."""
        if self.A is not None:
            return self.A @ (lam @ self.A)
        assert self.gram is not None
        return self.gram @ lam

    def factor(self, weight: Array) -> Solver:
        """h -> (dlam, A A'dlam) with (A A' + diag(1/weight)) dlam = h."""
        if self.A is None:
            assert self.gram is not None
            gram = self.gram
            whole = gram.copy()
            whole.ravel()[:: len(gram) + 1] += 1 / weight
            factor = cho_factor(whole, lower=True, overwrite_a=True, check_finite=False)

            def direct(h: Array) -> tuple[Array, Array]:
                dlam = cho_solve(factor, h, check_finite=False)
                return dlam, h - dlam / weight

            return direct
        A = self.A
        half = A * np.sqrt(weight)[:, None]
        normal = half.T @ half
        normal.ravel()[:: len(normal) + 1] += 1.0
        factor = cho_factor(normal, lower=True, overwrite_a=True, check_finite=False)

        def through_primal(h: Array) -> tuple[Array, Array]:
            dp = cho_solve(factor, (weight * h) @ A, check_finite=False)
            product = A @ dp
            return weight * (h - product), product

        return through_primal


def _longest(x: Array, dx: Array) -> float:
    falling = dx < 0
    return float(min(1.0, (-x[falling] / dx[falling]).min())) if falling.any() else 1.0


@dataclass
class _State:
    """lam, its slack z, and y = A A'lam."""

    lam: Array
    z: Array
    y: Array

    def gap(self) -> float:
        return float(self.lam @ self.z)

    def longest(self, dlam: Array, dz: Array) -> float:
        return min(_longest(self.lam, dlam), _longest(self.z, dz))

    def after(self, size: float, dlam: Array, dz: Array) -> float:
        return float((self.lam + size * dlam) @ (self.z + size * dz))

    def newton(self, solve: Solver, residual: Array, low: Array) -> tuple[Array, Array, Array]:
        """Step towards lam z = lam z + low with the residual gone: dlam, dz, dy."""
        dlam, dy = solve(-residual + low / self.lam)
        return dlam, (low - self.z * dlam) / self.lam, dy

    def move(self, size: float, dlam: Array, dz: Array, dy: Array) -> None:
        self.lam, self.z, self.y = self.lam + size * dlam, self.z + size * dz, self.y + size * dy


@dataclass(frozen=True)
class Interior:
    """lam (m,) and slack z (m,), A A'lam - b = z at the optimum; and where to go on from."""

    lam: Array
    slack: Array
    iterations: int
    rows: Rows
    state: _State


def _start(rows: Rows, b: Array) -> _State:
    m = len(b)
    curvature = float(rows.times(np.ones(m)).sum())
    size = float(b.sum()) / max(curvature, 1e-300)
    lam = np.full(m, max(size, 1.0 / m))
    y = rows.times(lam)
    width = max(float(np.abs(y - b).max()), 1.0)
    return _State(lam, np.maximum(y - b, 0.0) + width, y)


def _step(state: _State, rows: Rows, residual: Array, gap: float) -> float:
    """Mehrotra's predictor and corrector; the length of the step taken, 0 where the system broke down."""
    try:
        solve = rows.factor(1 / np.maximum(state.z / state.lam, 1e-14))
    except LinAlgError:
        return 0.0
    low = -state.lam * state.z
    dlam, dz, _ = state.newton(solve, residual, low)
    after = state.after(state.longest(dlam, dz), dlam, dz)
    centre = gap / len(state.lam) * min(1.0, max(after / gap, 0.0)) ** 3
    step = state.newton(solve, residual, low + centre - dlam * dz)
    size = STEP * state.longest(*step[:2])
    if not np.isfinite(size) or size < 1e-10:
        return 0.0
    state.move(size, *step)
    return size


def interior(rows: Rows, b: Array, tol: float = 1e-12, max_iter: int = 80, begun: Interior | None = None) -> Interior:
    """Solve to complementarity ``tol`` relative to the objective.

    Args: rows of unit norm, b (m,) with largest entry 1; begun, a rougher answer of theirs to go on from, which ends
        where one from the start does, to the last bit.
    Returns: Interior; on ill-conditioned systems as far as it came.
    """
    state, first = (_start(rows, b), 0) if begun is None else (replace(begun.state), begun.iterations)
    at = first
    for at in range(first, max_iter):
        residual = state.y - b - state.z
        gap, square = state.gap(), 0.5 * float(state.lam @ state.y)
        scale = abs(square) + abs(float(b @ state.lam) - square)
        if gap <= tol * scale and float(np.abs(residual) @ state.lam) <= tol * scale:
            return Interior(state.lam, state.z, at, rows, state)
        if _step(state, rows, residual, gap) == 0:
            break
        # Every few steps y is formed afresh, so that its updates do not add up their rounding.
        if at % 5 == 4:
            state.y = rows.times(state.lam)
    else:
        at = max(first, max_iter)
    return Interior(state.lam, state.z, at, rows, state)
