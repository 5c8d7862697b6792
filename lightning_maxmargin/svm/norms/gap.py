"""The gap of working rows in the lp norms, l_inf among them, and what to meet for it."""

from __future__ import annotations

import numpy as np

from lightning_maxmargin.svm.certificate import relative_gap
from lightning_maxmargin.svm.certify import missed_share
from lightning_maxmargin.svm.rows import Array

# Rounding of A w is 1e-16 ||w||. Next to a row whose b is 1, as that of a token next to the selected one, it moves the
# ratio A w / b of rows with b = 1e-8 by 1e-8; rows with a smaller share than SMALL of the largest b are met with ROOM,
# which costs that much of the norm and is no loss: their ratio is then not the smallest.
SMALL, ROOM = 1e-3, 1e-12


def gap_of(A: Array, b: Array, w: Array, lam: Array, p: float) -> float:
    """1 - dual / primal, with dual b'lam / ||A'lam||_q and primal ||w||_p / min(A w / b); or what rows b = 0 miss.

    Example:
        >>> gap_of(np.eye(2), np.ones(2), np.ones(2), np.ones(2), 3.0)
        0.0
    """
    on, margins = b > 0, A @ w
    q = 1.0 if p == np.inf else p / (p - 1)
    combined, length = float(np.linalg.norm(lam @ A, q)), float(np.linalg.norm(w, p))
    gap = relative_gap(float(b @ lam), combined, float((margins[on] / b[on]).min()), length, 1)
    # Below 0 where rows with b = 0 are missed, or by rounding: no better than as far above.
    return max(abs(gap), missed_share(margins[~on], np.full(int((~on).sum()), np.linalg.norm(w))))


def with_room(b: Array) -> Array:
    """What A w is to meet, w of norm about 1, for its smallest ratio to b not to be one of rounding."""
    return b + ROOM * ((b > 0) & (b < SMALL * b.max()))
