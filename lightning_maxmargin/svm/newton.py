"""Which rows a matrix W meets with equality, by Newton's method on the augmented Lagrangian of all rows.

With rows of length 1 and a penalty s it minimises ``.5 ||W||^2 + s/2 ||max(0, b - A W + lam/s)||^2``, then sets lam to
``s max(0, b - A W + lam/s)`` and goes on with a larger s. The rows inside the maximum are the guess of the active ones.
Steps are by conjugate gradients on products ``<W, delta z'> = delta'(W z)``; no row is formed and no matrix factored.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lightning_maxmargin.svm.rows import Array, Index, RowProblem, runs

Mask = npt.NDArray[np.bool_]
# One after the other; the last only where a row still falls short by more than MISSED of its right-hand side.
PENALTIES = (1.0, 8.0, 64.0, 512.0)
MISSED = 0.2
# A gradient, and what a step leaves of it, as shares of where they began.
ROUGH = 0.1
# With fewer rows or entries of W, constraint generation from nothing takes less time than this.
MIN_ROWS, MIN_DIM = 800, 200
# Their differences are held once more; of the active ones, their Gram.
MAX_ROWS, MAX_ACTIVE = 5_000_000, 6_000
MAX_STEPS, MAX_PRODUCTS, MAX_TRIALS = 20, 200, 30
# So many of the nearest rows besides, as a share of the active ones, while there are fewer than W has entries.
NEARBY = 0.25


class UnitRows:
    """Rows of length 1 of a problem with queries, and their right-hand sides b (n, T), the largest 1."""

    def __init__(self, problem: RowProblem) -> None:
        assert problem.queries is not None
        self.problem, self.queries = problem, problem.queries
        self.on = problem.live & (problem.row_norms > 0)
        self.scale = np.divide(1.0, problem.row_norms, out=np.zeros(self.on.shape), where=self.on)
        self.b = problem.rhs * self.scale
        self.b /= self.b.max()

    def times(self, W: Array) -> Array:
        """<row, W> of all (n, T)."""
        keys, p = self.problem.keys, self.queries @ W.T
        # Classes have the same keys for all samples.
        scores = p @ keys[0].T if keys.strides[0] == 0 else np.matmul(keys, p[:, :, None])[:, :, 0]
        return (scores[np.arange(len(scores)), self.problem.selected][:, None] - scores) * self.scale


class Part:
    """Some of the rows, whose products need their own differences only: ids, in order."""

    def __init__(self, rows: UnitRows, ids: Index) -> None:
        self.delta = rows.problem.differences(ids) * rows.scale.ravel()[ids, None]
        sequence = ids // rows.b.shape[1]
        self.first, self.at = runs(sequence)
        self.queries = rows.queries[sequence[self.first]]

    def times(self, W: Array) -> Array:
        """<row, W> (m,)."""
        return np.einsum("md,md->m", self.delta, (self.queries @ W.T)[self.at])

    def combine(self, lam: Array) -> Array:
        """sum lam row, of W's shape: one vector for each sequence, then all with their queries."""
        return np.add.reduceat(self.delta * lam[:, None], self.first, axis=0).T @ self.queries


def likely_active(problem: RowProblem) -> tuple[Index, Mask] | None:
    """Rows near the optimum W, in order, and which of them are thought active; None where this does not show them."""
    if problem.queries is None or problem.dim < MIN_DIM or not MIN_ROWS <= problem.live.sum() <= MAX_ROWS:
        return None
    if (problem.row_norms[problem.positive] == 0).any():
        return None
    rows = UnitRows(problem)
    W, lam = problem.mean_row(), np.zeros(rows.b.shape)
    y = rows.times(W)
    size = _length(rows, np.zeros_like(W), W, rows.b, y, PENALTIES[0])
    W, y = size * W, size * y
    smallest = 0.0
    for at, penalty in enumerate(PENALTIES):
        W, y, lam = _minimise(rows, W, y, lam, penalty)
        smallest = float((y[problem.positive] / rows.b[problem.positive]).min())
        if at == len(PENALTIES) - 2 and smallest >= 1 - MISSED:
            break
    return _nearest(rows, y, lam.ravel() > 0) if smallest > 0 else None


def _nearest(rows: UnitRows, y: Array, active: Mask) -> tuple[Index, Mask] | None:
    """The active rows and the nearest others."""
    count = int(active.sum())
    if count > MAX_ACTIVE:
        return None
    room = max(min(count + int(NEARBY * count), rows.problem.dim), count)
    above = np.where(active, -np.inf, np.where(rows.on, y - rows.b, np.inf).ravel())
    ids = np.sort(np.argpartition(above, room)[:room]) if room < len(above) else np.arange(len(above))
    ids = ids[above[ids] < np.inf]
    return ids, active[ids]


def _minimise(rows: UnitRows, W: Array, y: Array, lam: Array, penalty: float) -> tuple[Array, Array, Array]:
    """W, y = A W and the next multipliers (n, T) for one penalty."""
    for _ in range(MAX_STEPS):
        short = np.where(rows.on, rows.b - y + lam / penalty, 0.0)
        ids = np.flatnonzero(short > 0)
        part = Part(rows, ids)
        combined = part.combine(penalty * short.ravel()[ids])
        gradient = W - combined
        if np.linalg.norm(gradient) <= ROUGH * max(np.linalg.norm(W), np.linalg.norm(combined)):
            break
        step = _newton(part, -gradient, penalty)
        along = rows.times(step)
        size = _length(rows, W, step, short, along, penalty)
        W, y = W + size * step, y + size * along
    return W, y, penalty * np.maximum(short, 0.0)


def _newton(part: Part, target: Array, penalty: float) -> Array:
    """The step with (I + s A'A) step = target, by conjugate gradients."""
    step, rest, way = np.zeros_like(target), target.copy(), target
    square = first = float(np.vdot(rest, rest))
    for _ in range(MAX_PRODUCTS):
        product = way + penalty * part.combine(part.times(way))
        size = square / float(np.vdot(way, product))
        step, rest = step + size * way, rest - size * product
        before, square = square, float(np.vdot(rest, rest))
        if square <= ROUGH**2 * first:
            break
        way = rest + square / before * way
    return step


def _length(rows: UnitRows, W: Array, step: Array, short: Array, along: Array, penalty: float) -> float:
    """The length t that minimises along W + t step, ``short`` falling by t ``along``: Newton's, kept in a bracket."""
    short, along = short[rows.on], along[rows.on]
    slope, curve = float(np.vdot(W, step)), float(np.vdot(step, step))
    low, high, t, allowed = 0.0, np.inf, 1.0, 0.0
    for trial in range(MAX_TRIALS):
        at = 0.0 if trial == 0 else t
        left = short - at * along
        on = left > 0
        part = along[on]
        first, second = slope + at * curve - penalty * float(left[on] @ part), curve + penalty * float(part @ part)
        if trial == 0:
            allowed = 1e-3 * abs(first)
            continue
        if abs(first) <= allowed:
            break
        low, high = (low, t) if first > 0 else (t, high)
        t = t - first / second
        if not low < t < high:
            t = 0.5 * (low + high) if high < np.inf else 2 * low
    return t
