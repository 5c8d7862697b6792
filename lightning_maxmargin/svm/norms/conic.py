"""A primal-dual interior point for the semidefinite forms of the spectral and the nuclear norm.

Steps are the Helmberg-Rendl-Vanderbei-Wolkowicz / Kojima-Shindoh-Hara / Monteiro direction with Mehrotra's corrector:
13 to 18 of them reach a gap of 1e-10. Douglas-Rachford splitting needs a second method for the last digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.linalg.lapack import dsyevr, dtrtri

from lightning_maxmargin.svm.norms.lp import longest
from lightning_maxmargin.svm.norms.semidefinite import Semidefinite
from lightning_maxmargin.svm.rows import Array

Answer = tuple[Array, Array, float]
MAX_ITER = 60
# Steps that do not halve the gap before it is given up.
PATIENCE = 6
TARGET = 1e-13
# The gap's norms cost a tenth of a step: until complementarity promises this, they are not evaluated.
EVALUATE_BELOW = 1e-5
# Below this gap a step that does not halve it has met rounding.
FINE = 1e-10
# The multipliers' equations may be off by this share of the gap, so that rounding does not show in it.
SHARE = 0.02
RIDGES = (0.0, 1e-15, 1e-14, 1e-13, 1e-12)


def _factor(S: Array) -> tuple[Array, bool]:
    """Cholesky factor; where optima are not unique S loses rank, and the smallest ridge that carries it is added."""
    diagonal, top = S.ravel()[:: len(S) + 1], float(np.trace(S)) / len(S)
    for ridge in RIDGES:
        diagonal += ridge * top
        try:
            return cho_factor(S, check_finite=False)
        except LinAlgError:
            continue
    raise LinAlgError


def _inverse_root(X: Array) -> Array:
    """R with R X R' = I, the inverse of the Cholesky factor."""
    return np.asarray(dtrtri(np.linalg.cholesky(X), lower=1)[0], np.float64)


def _longest(root: Array, direction: Array) -> float:
    """Largest a with X + a direction >= 0, ``root`` the inverse root of X."""
    half = root @ direction @ root.T
    if not np.isfinite(half).all():
        raise LinAlgError
    smallest = float(dsyevr(half, compute_v=0, range="I", il=1, iu=1, lower=1)[0][0])
    return np.inf if smallest >= 0 else -1 / smallest


@dataclass
class _Iterate:
    """y and slack s, multipliers Y and lam, and what is computed from them once for each step."""

    problem: Semidefinite
    y: Array
    s: Array
    Y: Array
    lam: Array

    def promise(self) -> float:
        """What complementarity promises for the relative gap, without the norms that certify it."""
        self.X = self.problem.matrix(self.y)
        self.count = len(self.Y) + len(self.s)
        products = float(np.sum(self.X * self.Y)) + float(self.s @ self.lam)
        self.mu = products / self.count
        return products / max(abs(float(self.problem.c @ self.y)), 1e-300)

    def prepare(self) -> None:
        """Factors for the step; raises LinAlgError where the end of the digits is reached."""
        if not 0 < self.mu < np.inf:
            raise LinAlgError
        self.root_X, self.root_Y = _inverse_root(self.X), _inverse_root(self.Y)
        self.inverse = self.root_X.T @ self.root_X
        self.factor = _factor(self.problem.schur(self.inverse, self.Y, self.lam / self.s))
        self.missing = self.problem.linear(self.y) - self.s

    def step(self, centre: float, matrix: Array | float, vector: Array | float) -> tuple[Array, ...]:
        """dy, dX, ds, dY, dlam towards X Y = centre, s lam = centre, with second-order terms matrix and vector."""
        p, scaled = self.problem, centre * self.inverse - matrix
        rest = p.adjoint(scaled, (centre - vector - self.lam * self.missing) / self.s)
        dy = cho_solve(self.factor, rest - p.c, check_finite=False)
        dX, ds = p.matrix(self.y + dy) - self.X, p.linear(self.y + dy) - self.s
        moved = self.Y @ dX @ self.inverse
        dY = scaled - self.Y - 0.5 * (moved + moved.T)
        return dy, dX, ds, dY, (centre - vector - self.lam * ds) / self.s - self.lam

    def lengths(self, dX: Array, ds: Array, dY: Array, dlam: Array, share: float) -> tuple[float, float]:
        """Steps of y and of the multipliers, ``share`` of the way to the boundary, at most 1."""
        a = min(_longest(self.root_X, dX), longest(self.s, ds))
        b = min(_longest(self.root_Y, dY), longest(self.lam, dlam))
        return min(1.0, share * a), min(1.0, share * b)

    def advance(self) -> None:
        """Mehrotra's predictor and corrector; ``promise`` comes first."""
        self.prepare()
        _, dX, ds, dY, dlam = self.step(0.0, np.zeros_like(self.Y), 0.0)
        a, b = self.lengths(dX, ds, dY, dlam, 1.0)
        after = float(np.sum((self.X + a * dX) * (self.Y + b * dY))) + float((self.s + a * ds) @ (self.lam + b * dlam))
        power = max(1.5, 3 * min(a, b) ** 2)
        centre = self.mu * min(1.0, max(after / (self.mu * self.count), 0.0)) ** power
        second = dY @ dX @ self.inverse
        dy, dX, ds, dY, dlam = self.step(centre, 0.5 * (second + second.T), dlam * ds)
        a, b = self.lengths(dX, ds, dY, dlam, 0.9 + 0.09 * min(a, b))
        self.y, self.s, self.Y, self.lam = self.y + a * dy, self.s + a * ds, self.Y + b * dY, self.lam + b * dlam

    def restore(self, allowed: float) -> None:
        """Y + Y A(v) Y and lam + lam^2 B v with <A_k, Y> + (B'lam)_k = c_k.

        A step leaves there the rounding of Y dX X^-1, which ends everything at a gap of 1e-7; this correction moves
        Y and lam in proportion to their own size, and takes the gap to 1e-11. Nothing is done below ``allowed``.
        """
        p, zero = self.problem, np.zeros_like(self.problem.c)
        rest = p.c - p.adjoint(self.Y, self.lam)
        if (np.abs(rest) <= allowed * np.where(p.c == 0, 1.0, np.abs(p.c))).all():
            return
        factor = _factor(p.schur(self.Y, self.Y, self.lam**2))
        v = cho_solve(factor, rest, check_finite=False)
        dY = self.Y @ (p.matrix(v) - p.matrix(zero)) @ self.Y
        dlam = self.lam**2 * (p.linear(v) - p.linear(zero))
        a = min(1.0, 0.95 * longest(self.lam, dlam))
        self.Y, self.lam = self.Y + a * 0.5 * (dY + dY.T), self.lam + a * dlam


def solve_semidefinite(problem: Semidefinite, W: Array, lam: Array, target: float = TARGET) -> Answer:
    """W (d, dq), multipliers (m,) >= 0 and their relative gap, from a W with positive rows and its multipliers."""
    at = _Iterate(problem, *problem.start(W, lam))
    best: Answer = (W, lam, np.inf)
    least, since = np.inf, 0
    for _ in range(MAX_ITER):
        gap = at.promise()
        if gap <= max(EVALUATE_BELOW, target):
            found = problem.answer(at.y, at.Y, at.lam)
            gap = problem.gap_of(*found)
            best = (*found, gap) if gap < best[2] else best
        since = 0 if gap < 0.5 * least else since + 1
        least = min(least, gap)
        if gap <= target or since > (1 if best[2] < FINE else PATIENCE):
            break
        try:
            at.advance()
            at.restore(SHARE * gap)
        except (LinAlgError, ValueError):
            break
    return best
