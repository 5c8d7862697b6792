"""l_inf norm of the working rows, a linear program: ``max g  subject to  A w >= g b, -1 <= w <= 1``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError
from scipy.optimize import linprog

from lightning_maxmargin.svm.norms.gap import gap_of, with_room
from lightning_maxmargin.svm.norms.long import solver_of
from lightning_maxmargin.svm.norms.lp import longest
from lightning_maxmargin.svm.rows import Array

Answer = tuple[Array, Array, float]
# Below this gap a step that does not halve it has met rounding.
FINE = 1e-11
# Entries this near to the bound, and multipliers this small, are at it.
AT_BOUND = 1e-7
# The program is stated anew for so many times the change of its answer, to meet rows to 1e-13.
MAGNIFIED = 1e6
# Gaps below this are as good as each other.
AS_GOOD = 1e-10
# Of rows with b = 0 at the start, which the Euclidean solution may meet with none; .01 loses 3 of 5 problems with them.
LEAST_SLACK = 1e-6
# Steps of the interior point, those that do not halve the gap before it is given up, and how far each goes.
MAX_ITER, PATIENCE, SHARE = 100, 10, 0.98


def solve_linf(A: Array, b: Array) -> Answer | None:
    """w (r,), lam (m,) >= 0 and their gap, a program with m rows; None on failure.

    HiGHS meets rows to 1e-7. Its basis is solved again in float64; where rows differ by less than that, so that it is
    the wrong one, the program is stated once more for a small change of w, in units in which they differ by more.
    """
    found = _vertex(A, b, np.zeros(A.shape[1]), 0.0, 1.0)
    if found is None:
        return None
    best = _finished(A, b, found[0], found[2])
    if best[2] > FINE:
        found = _vertex(A, b, *found[:2], MAGNIFIED)
        best = best if found is None else min(best, _finished(A, b, found[0], found[2]), key=lambda answer: answer[2])
    return best


def _vertex(A: Array, b: Array, w: Array, g: float, scale: float) -> tuple[Array, float, Array] | None:
    """w, g and lam of the program, stated for ``scale`` times the change of w and g."""
    found = linprog(
        np.append(np.zeros(len(w)), -1.0),
        A_ub=np.column_stack([-A, b]),
        b_ub=scale * (A @ w - g * b),
        bounds=[*zip(-scale * (1 + w), scale * (1 - w), strict=True), (None, None)],
        method="highs",
    )
    if found.status != 0:
        return None
    change = np.asarray(found.x) / scale
    return np.clip(w + change[:-1], -1, 1), g + float(change[-1]), np.maximum(-np.asarray(found.ineqlin.marginals), 0.0)


def _finished(A: Array, b: Array, w: Array, lam: Array) -> Answer:
    """The basis of a vertex, tight rows and entries off the bound, solved in float64, where that is better."""
    best = (w, lam, gap_of(A, b, w, lam, np.inf))
    tight, free = np.flatnonzero(lam > AT_BOUND * lam.max()), np.abs(w) < 1 - AT_BOUND
    if len(tight) == 0:
        return best
    basis = np.column_stack([A[np.ix_(tight, np.flatnonzero(free))], -b[tight]])
    fixed = np.where(free, 0.0, np.sign(w))
    inner = np.linalg.lstsq(basis, (with_room(b) - b)[tight] - A[tight] @ fixed, rcond=None)[0]
    fixed[free] = np.clip(inner[:-1], -1, 1)
    exact = np.zeros(len(b))
    exact[tight] = np.maximum(np.linalg.lstsq(basis.T, np.append(np.zeros(free.sum()), -1.0), rcond=None)[0], 0.0)
    pairs = [(x, y, gap_of(A, b, x, y, np.inf)) for x in (fixed, w) for y in (exact, lam)]
    # The basis comes first among those as good: it has room, where the vertex may meet its rows by luck of rounding.
    return min(pairs, key=lambda pair: max(pair[2], AS_GOOD))


def interior_linf(A: Array, b: Array, w: Array, lam: Array) -> Answer:
    """The same by Mehrotra's predictor and corrector, from a w with A w > 0 where b > 0 and its multipliers.

    For rows in longer numbers, where HiGHS cannot tell one vertex from the next.
    """
    at = _Iterate.near(A, b, w, lam)
    best: Answer = (w, lam, np.inf)
    since = 0
    for _ in range(MAX_ITER):
        gap = best[2]
        now = gap_of(A, b, at.w, at.lam, np.inf)
        best = (at.w, at.lam, now) if now < gap else best
        since = 0 if best[2] < 0.5 * gap else since + 1
        if since > (1 if best[2] < FINE else PATIENCE):
            break
        try:
            at.advance()
        except (LinAlgError, ValueError):
            break
    return best


@dataclass
class _Iterate:
    """w and g, slack s = A w - g b, and multipliers: lam of rows, z and y of w <= 1 and w >= -1.

    The optimum has A'lam = z - y and b'lam = 1, and the products s lam, (1 - w) z and (1 + w) y vanish.
    """

    A: Array
    b: Array
    w: Array
    g: Any
    s: Array
    lam: Array
    z: Array
    y: Array

    @classmethod
    def near(cls, A: Array, b: Array, w: Array, lam: Array) -> _Iterate:
        """In units where g is about 1."""
        on = b > 0
        w = 0.9 * w / np.abs(w).max()
        b = with_room(b * (A[on] @ w / b[on]).min())
        lam = lam / np.abs(lam @ A).sum() + 0.1 / len(lam)
        lam = lam / (b @ lam)
        # Rows are met from the first: what is missed would have to vanish faster than the products.
        s = np.where(on, A @ w - 0.9 * b, np.maximum(A @ w, LEAST_SLACK))
        z, y = (np.maximum(side, 0) + 0.1 / len(w) for side in (lam @ A, -(lam @ A)))
        return cls(A, b, w, 0.9, s, lam, z, y)

    def products(self) -> tuple[Array, Array, Array]:
        return self.s * self.lam, (1 - self.w) * self.z, (1 + self.w) * self.y

    def step(self) -> Callable[..., tuple[Array, ...]]:
        """dw, dg, dlam, ds, dz and dy that change the three products by so much, to first order."""
        A, b, r, u, v = self.A, self.b, len(self.w), 1 - self.w, 1 + self.w
        missing, rest = A @ self.w - self.g * b - self.s, self.z - self.y - self.lam @ A
        bounds = np.diag(self.z / u + self.y / v)
        K = np.block(
            [
                [bounds, np.zeros((r, 1)), -A.T],
                [np.zeros((1, r + 1)), b[None]],
                [A, -b[:, None], np.diag(self.s / self.lam)],
            ]
        )
        solve = solver_of(K)

        def step(of_rows: Array, above: Array, below: Array) -> tuple[Array, ...]:
            right = [-rest - above / u + below / v, [1 - b @ self.lam], of_rows / self.lam - missing]
            dw, dg, dlam = np.split(solve(np.concatenate(right)), [r, r + 1])
            return dw, dg, dlam, A @ dw - dg * b + missing, (above + self.z * dw) / u, (below - self.y * dw) / v

        return step

    def advance(self) -> None:
        """Predictor and corrector; LinAlgError where rounding ends it."""
        products, count = self.products(), len(self.b) + 2 * len(self.w)
        mu = float(sum(part.sum() for part in products)) / count
        if not 0 < mu < np.inf:
            raise LinAlgError
        step = self.step()
        moves = step(*(-part for part in products))
        after = replace(self)
        after.move(moves, 1.0)
        dw, _, dlam, ds, dz, dy = moves
        left = float(sum(part.sum() for part in after.products())) / (mu * count)
        target, second = mu * min(1.0, left) ** 3, (ds * dlam, -dw * dz, dw * dy)
        self.move(step(*(target - part - more for part, more in zip(products, second, strict=True))), SHARE)

    def move(self, moves: tuple[Array, ...], share: float) -> None:
        """w and the multipliers each so far of their way to the boundary, at most a whole step."""
        dw, dg, dlam, ds, dz, dy = moves
        a = share * _furthest((self.s, ds), (1 - self.w, -dw), (1 + self.w, dw))
        c = share * _furthest((self.lam, dlam), (self.z, dz), (self.y, dy))
        self.w, self.g, self.s = self.w + a * dw, self.g + a * dg[0], self.s + a * ds
        self.lam, self.z, self.y = self.lam + c * dlam, self.z + c * dz, self.y + c * dy


def _furthest(*pairs: tuple[Array, Array]) -> float:
    return min(1.0, *(longest(x, dx) for x, dx in pairs))
