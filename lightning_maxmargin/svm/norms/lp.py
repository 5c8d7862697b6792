"""lp and l_inf norm of the working rows: ``min ||w||_p  subject to  A w >= b``.

With 1/p + 1/q = 1 and phi_p(w) = sign(w) |w|^(p-1), the optimum of ``||w||_p^p / p`` has phi_p(w) = A'lam, which is
w = phi_q(A'lam). The interior point linearises whichever of the two is the smooth one: |w|^p above 2, |A'lam|^q below.
l_inf is a linear program. Rows have unit length, the largest b is 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.optimize import linprog

from lightning_maxmargin.svm.certificate import relative_gap
from lightning_maxmargin.svm.certify import missed_share
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
# Entries this near to the bound, and multipliers this small, are at it.
AT_BOUND = 1e-7
# A linear program is stated anew for so many times the change of its answer, to meet rows to 1e-13.
MAGNIFIED = 1e6
# Gaps below this are as good as each other.
AS_GOOD = 1e-10
# Rounding of A w is 1e-16 ||w||. Next to a row whose b is 1, as that of a token next to the selected one, it moves the
# ratio A w / b of rows with b = 1e-8 by 1e-8; rows with a smaller share than SMALL of the largest b are met with ROOM,
# which costs that much of the norm and is no loss: their ratio is then not the smallest.
SMALL, ROOM = 1e-3, 1e-12


def phi(w: Array, p: float) -> Array:
    """sign(w) |w|^(p-1), the gradient of ||w||_p^p / p."""
    return np.sign(w) * np.abs(w) ** (p - 1)


def gap_of(A: Array, b: Array, w: Array, lam: Array, p: float) -> float:
    """1 - dual / primal, with dual b'lam / ||A'lam||_q and primal ||w||_p / min(A w / b); or what rows b = 0 miss."""
    on, margins = b > 0, A @ w
    q = 1.0 if p == np.inf else p / (p - 1)
    combined, length = float(np.linalg.norm(lam @ A, q)), float(np.linalg.norm(w, p))
    gap = relative_gap(float(b @ lam), combined, float((margins[on] / b[on]).min()), length, 1)
    return max(gap, missed_share(margins[~on], np.full(int((~on).sum()), np.linalg.norm(w))))


def with_room(b: Array) -> Array:
    """What A w is to meet, w of norm about 1, for its smallest ratio to b not to be one of rounding."""
    return b + ROOM * ((b > 0) & (b < SMALL * b.max()))


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
    smallest, size = float((A[on] @ w / b[on]).min()), float(np.linalg.norm(w, p))
    b, w = b * (smallest / size), 1.1 * w / size
    lam = lam + 0.1 * lam.mean()
    lam = lam / float(np.linalg.norm(lam @ A, p / (p - 1)))
    return b, w, lam, np.maximum(A @ w - b, 0.01)


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
    H, weight = (p - 1) * np.abs(w) ** (p - 2), lam / slack
    half = A * np.sqrt(weight)[:, None]
    S = half.T @ half
    S.ravel()[:: len(S) + 1] += H + 1e-14 * np.trace(S) / len(S)
    factor = cho_factor(S, overwrite_a=True, check_finite=False)
    rest = lam @ A - phi(w, p)

    def step(target: Array) -> tuple[Array, Array, Array]:
        dw = cho_solve(factor, rest + (target / slack - weight * missing) @ A, check_finite=False)
        ds = A @ dw + missing
        return dw, (target - lam * ds) / slack, ds

    return step


def _below(A: Array, w: Array, lam: Array, slack: Array, missing: Array, q: float) -> Step:
    """p < 2: w + dw = phi_q(u) + G A'dlam with u = A'lam, G = (q-1) |u|^(q-2), m unknowns; the rest as above."""
    u = lam @ A
    G = (q - 1) * np.abs(u) ** (q - 2)
    S = (A * G) @ A.T
    S.ravel()[:: len(S) + 1] += slack / lam + 1e-15 * np.trace(S) / len(S)
    factor = cho_factor(S, overwrite_a=True, check_finite=False)
    rest = phi(u, q) - w

    def step(target: Array) -> tuple[Array, Array, Array]:
        dlam = cho_solve(factor, target / lam - A @ rest - missing, check_finite=False)
        dw = G * (dlam @ A) + rest
        return dw, dlam, A @ dw + missing

    return step


def longest(x: Array, dx: Array) -> float:
    """Largest a with x + a dx >= 0."""
    falling = dx < 0
    return float((-x[falling] / dx[falling]).min()) if falling.any() else np.inf


def solve_linf(A: Array, b: Array) -> Answer | None:
    """w (r,), lam (m,) >= 0 and their gap: max g s.t. A w >= g b, -1 <= w <= 1, a program with m rows; None on failure.

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
