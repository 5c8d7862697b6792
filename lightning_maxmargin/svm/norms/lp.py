"""lp norm of the working rows: ``min ||w||_p  subject to  A w >= b``, 1 < p < inf.

With 1/p + 1/q = 1 and phi_p(w) = sign(w) |w|^(p-1), the optimum of ``||w||_p^p / p`` has phi_p(w) = A'lam, which is
w = phi_q(A'lam). The interior point linearises whichever of the two is the smooth one: |w|^p above 2, |A'lam|^q below.
Rows have unit length, the largest b is 1. In longer numbers than float64 both equations stay as they are, not squared.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from lightning_maxmargin.svm.norms.gap import gap_of, with_room
from lightning_maxmargin.svm.norms.long import is_long, solver_of
from lightning_maxmargin.svm.rows import Array

Answer = tuple[Array, Array, float]
Step = Callable[[Array], tuple[Array, Array, Array]]
MAX_ITER = 400
# For large p entries near zero gain only a factor 1 - 1/(p-1) a step: 20 loses 5 of 30 problems at p = 1.01.
PATIENCE = 80
# Below this gap a step that does not halve it has met rounding.
FINE = 1e-11
# Share of the distance between A'lam and phi_p(w) that the slack is held at; .1 loses problems at p = 20.
APART = 0.01
# Longest step, in units of |w| / (p - 1): a Newton step on |w|^p may overshoot by 1 / (p - 1) powers. Of 30 random
# problems all were certified for 1.01 <= p <= 20; twice the reach above 2 loses some at 10, half of it below 2 at 1.01.
REACH_ABOVE, REACH_BELOW = 2.0, 4.0


def phi(w: Array, p: float) -> Array:
    """sign(w) |w|^(p-1), the gradient of ||w||_p^p / p."""
    return np.sign(w) * np.abs(w) ** (p - 1)


def solve_lp(A: Array, b: Array, p: float, w: Array, lam: Array, rough: float = 0.0) -> Answer:
    """w (r,), lam (m,) >= 0 and their gap for 1 < p < inf, from a w with A w > 0 where b > 0 and its multipliers.

    Far from 2 it goes through norms between, each the square of the last: the exponents must not change by much for
    Newton's step to hold. Stops at the gap ``rough``, by default where rounding ends it.
    """
    long = max(p, p / (p - 1))
    stages = max(1, int(np.ceil(np.log2(long) - 1)))
    gap = np.inf
    for at in range(1, stages + 1):
        exponent = 2 * (0.5 * long) ** (at / stages)
        now = exponent if p > 2 else exponent / (exponent - 1)
        w, lam, gap = _interior(A, b, p if at == stages else now, w, lam, rough if at == stages else 1e-2)
    return w, lam, gap


def _start(A: Array, b: Array, p: float, w: Array, lam: Array) -> tuple[Array, Array, Array, Array]:
    """b, w, lam and slack in units where ||w||_p is about 1: its powers then neither over- nor underflow."""
    on = b > 0
    smallest, size = (A[on] @ w / b[on]).min(), np.linalg.norm(w, p)
    b, w = b * (smallest / size), 1.1 * w / size
    # Multipliers of rows that nearly cancel are up to 1e8 times the combination's length: a tenth of their mean would
    # be another combination, and a slack of .01 far from them.
    long = is_long(A)
    lam = lam + (0.1 / len(lam) * np.linalg.norm(lam @ A, p / (p - 1)) if long else 0.1 * lam.mean())
    lam = lam / np.linalg.norm(lam @ A, p / (p - 1))
    return b, w, lam, np.where(on & long, A @ w - b, np.maximum(A @ w - b, 0.01))


def _interior(A: Array, b: Array, p: float, w: Array, lam: Array, target: float) -> Answer:
    """Mehrotra's predictor and corrector on the equations of ``_above`` or ``_below``."""
    q = p / (p - 1)
    b, w, lam, slack = _start(A, b, p, w, lam)
    asked = with_room(b)
    best: Answer = (w, lam, np.inf)
    since = 0
    for _ in range(MAX_ITER):
        u = lam @ A
        gap = best[2]
        for trial in (w, phi(u, q)):
            now = gap_of(A, b, trial, lam, p)
            best = (trial, lam, now) if now < best[2] else best
        since = 0 if best[2] < 0.5 * gap else since + 1
        gap = best[2]
        if gap <= target or since > (1 if best[2] < FINE else PATIENCE):
            break
        try:
            missing = A @ w - asked - slack
            step = _above(A, w, lam, slack, missing, p) if p >= 2 else _below(A, w, lam, slack, missing, q)
        except LinAlgError:
            break
        mu = float(lam @ slack) / len(b)
        if not 0 < mu < np.inf:
            break
        _, dlam, ds = step(-lam * slack)
        a = min(1.0, longest(slack, ds), longest(lam, dlam))
        after = float((lam + a * dlam) @ (slack + a * ds)) / len(b)
        # Slack must not vanish before w and A'lam agree: their weights would drown the powers' curvature.
        apart = float(np.linalg.norm(u - phi(w, p), q)) / len(b) if p >= 2 else 0.0
        centre = max(mu * min(1.0, after / mu) ** 2, min(mu, APART * apart))
        dw, dlam, ds = step(centre - lam * slack - a * a * dlam * ds)
        grown, moved, reach = (w, dw, REACH_ABOVE) if p >= 2 else (u, dlam @ A, REACH_BELOW)
        top = max(p, q)
        size = max(float(np.linalg.norm(moved, top)), 1e-300)
        a = min(1.0, reach / (top - 1) * float(np.linalg.norm(grown, top)) / size)
        a = min(a, 0.98 * longest(slack, ds), 0.98 * longest(lam, dlam))
        if not np.isfinite(a):
            break
        w, lam, slack = w + a * dw, lam + a * dlam, slack + a * ds
    return best


def _above(A: Array, w: Array, lam: Array, slack: Array, missing: Array, p: float) -> Step:
    """p >= 2: A'(lam + dlam) = phi_p(w) + H dw with H = (p-1) |w|^(p-2), r unknowns.

    The step taken has slack dlam + lam ds = target and ds = A dw + missing.
    """
    H, weight, rest = (p - 1) * np.abs(w) ** (p - 2), lam / slack, lam @ A - phi(w, p)
    if is_long(A):
        return _together(A, H, A, lam, slack, missing, rest)
    half = A * np.sqrt(weight)[:, None]
    S = half.T @ half
    S.ravel()[:: len(S) + 1] += H + 1e-14 * np.trace(S) / len(S)
    factor = cho_factor(S, overwrite_a=True, check_finite=False)

    def step(target: Array) -> tuple[Array, Array, Array]:
        dw = cho_solve(factor, rest + (target / slack - weight * missing) @ A, check_finite=False)
        ds = A @ dw + missing
        return dw, (target - lam * ds) / slack, ds

    return step


def _below(A: Array, w: Array, lam: Array, slack: Array, missing: Array, q: float) -> Step:
    """p < 2: w + dw = phi_q(u) + G A'dlam with u = A'lam, G = (q-1) |u|^(q-2), m unknowns; the rest as above."""
    u = lam @ A
    G, rest = (q - 1) * np.abs(u) ** (q - 2), phi(u, q) - w
    if is_long(A):
        return _together(A, np.ones_like(w), A * G, lam, slack, missing, rest)
    S = (A * G) @ A.T
    S.ravel()[:: len(S) + 1] += slack / lam + 1e-15 * np.trace(S) / len(S)
    factor = cho_factor(S, overwrite_a=True, check_finite=False)

    def step(target: Array) -> tuple[Array, Array, Array]:
        dlam = cho_solve(factor, target / lam - A @ rest - missing, check_finite=False)
        dw = G * (dlam @ A) + rest
        return dw, dlam, A @ dw + missing

    return step


def _together(A: Array, h: Array, B: Array, lam: Array, slack: Array, missing: Array, rest: Array) -> Step:
    """Both equations at once, r + m unknowns: h dw - B'dlam = rest and A dw + slack/lam dlam = target/lam - missing."""
    # A coordinate that no row has stays 0: without its own equation K would be singular.
    h = np.where((A == 0).all(0), 1.0, h)
    K = np.block([[np.diag(h), -B.T], [A, np.diag(slack / lam)]])
    solve = solver_of(K)

    def step(target: Array) -> tuple[Array, Array, Array]:
        dw, dlam = np.split(solve(np.concatenate([rest, target / lam - missing])), [len(h)])
        return dw, dlam, A @ dw + missing

    return step


def longest(x: Array, dx: Array) -> float:
    """Largest a with x + a dx >= 0."""
    falling = dx < 0
    return float((-x[falling] / dx[falling]).min()) if falling.any() else np.inf
