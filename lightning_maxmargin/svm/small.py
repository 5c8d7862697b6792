"""One small problem in few calls: explicit rows, DAQP, and the certificate.

With n=6, T=8, d=10 the general path makes 880 calls of Python, fifty times what DAQP takes. It is left everything that
needs more than that: copies of a key, sizes that float64 cannot square, rows that no direction meets, and answers that
a second look may improve.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg.lapack import dposv, dpotrs
from torch import Tensor

from lightning_maxmargin.svm.certificate import TOLERANCES, Certificate, relative_gap
from lightning_maxmargin.svm.doubles import to_array
from lightning_maxmargin.svm.qp.daqp import multipliers
from lightning_maxmargin.svm.rows import EPS, LARGEST, MERGE, SMALLEST, Array, Index, unit_rounding
from lightning_maxmargin.svm.solution import Solution, answered
from lightning_maxmargin.svm.threads import one_thread

# Up to this many numbers half of the general path's time or less; above less is gained, and a fifth lost where no
# direction meets the rows.
MAX_NUMBERS = 200_000
# Up to this many numbers DAQP takes all rows in less time than it takes to find out which matter.
TINY = 4_000
# OpenBLAS shares no product with so few numbers; to ask for its threads takes a tenth of the time of a small problem.
SINGLE = 9_000
# Rows to begin with for each dimension: 4 take a tenth longer for 500 rows of 20 and 450 of 16, 6 as long.
FIRST = 8
MAX_ROUNDS = 8
# A row that falls short by this much is added; the last answer is held to rounding.
MISSED = 1e-10
# Active rows that miss 1 by more than this share of what rounding may explain are solved for once more: three in a
# hundred of DAQP's answers with n=6, T=8, d=10, none of larger ones. A gap of 3e-13 was then 1e-14.
FINE = 0.25


class _Found(NamedTuple):
    """Rows with weight and their multipliers, p (d,) and its length, rows that are tight, and what it is worth."""

    certificate: Certificate
    p: Array
    length: float
    on: Index
    lam: Array
    tight: Index
    rounds: int


def attention_svm(keys: Any, selected: Any, mask: Any) -> Solution | None:
    """The Att-SVM of keys (n, T, d) in the Euclidean norm, or None for the general path to solve or to refuse."""
    if not _is_small(keys, 3):
        return None
    k = to_array(keys, "keys")
    n, T, d = k.shape
    alpha, live = _indices(selected, n, T), _live(mask, n, T)
    if alpha is None or live is None:
        return None
    place = np.arange(0, n * T, T) + alpha
    if mask is not None and not live[place].all():
        return None
    live[place] = False
    ids = live.nonzero()[0]
    chosen = k.reshape(-1, d).take(place, axis=0)
    with np.errstate(all="ignore"):
        found = _solved((chosen[:, None] - k).reshape(-1, d).take(ids, axis=0), math.sqrt(np.vdot(chosen, chosen)))
    if found is None:
        return None
    dual, support = np.zeros((n, T)), np.empty((len(found.tight), 2), np.int64)
    dual.reshape(-1)[ids[found.on]] = found.lam
    np.divmod(ids[found.tight], T, out=(support[:, 0], support[:, 1]))
    return answered(found.certificate, found.p, dual, support, margin=1 / found.length, rounds=found.rounds)


def label_svm(values: Any, labels: Any) -> Solution | None:
    """The label SVM of values (n, d) and labels (n,) in {-1, 1}, or None for the general path to solve or to refuse."""
    if not _is_small(values, 2):
        return None
    x, y = to_array(values, "values"), to_array(labels, "labels")
    if y.shape != x.shape[:1] or not _least(abs(y) == 1):
        return None
    with np.errstate(all="ignore"):
        found = _solved(x * y[:, None], 0.0)
    if found is None:
        return None
    dual = np.zeros(len(x))
    dual[found.on] = found.lam
    return answered(found.certificate, found.p, dual, found.tight, margin=1 / found.length, rounds=found.rounds)


def _is_small(x: Any, axes: int) -> bool:
    """Whether x is a tensor or an array in memory of so many axes, with few numbers."""
    if not isinstance(x, Tensor) and type(x) is not np.ndarray:
        return False
    return len(x.shape) == axes and 0 < math.prod(x.shape) <= MAX_NUMBERS


def _indices(selected: Any, n: int, T: int) -> Index | None:
    """Selected tokens (n,) of the usual type, in range."""
    if isinstance(selected, Tensor) and selected.dtype == torch.int64:
        selected = selected.cpu().numpy()
    if not isinstance(selected, np.ndarray) or selected.dtype != np.int64 or selected.shape != (n,):
        return None
    return selected if _least(selected) >= 0 and _largest(selected) < T else None


def _live(mask: Any, n: int, T: int) -> npt.NDArray[np.bool_] | None:
    """Which tokens (n * T,) are no padding, for a mask of the usual type."""
    if mask is None:
        return np.ones(n * T, bool)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (n, T):
        return None
    return mask.cpu().numpy().flatten()


def _least(x: npt.NDArray[Any]) -> Any:
    """The smallest number, NaN where there is one; ``min`` takes 1.8 us, this .4."""
    return x.item(x.argmin())


def _largest(x: npt.NDArray[Any]) -> Any:
    return x.item(x.argmax())


def _solved(D: Array, longest: float) -> _Found | None:
    """The answer for rows D (m, d) with right-hand sides 1; None where it is in doubt.

    longest: at least the length of every selected key; others are no longer than that and their difference together.
    """
    if not len(D):
        return None
    squares = np.einsum("md,md->m", D, D)
    least, most = _least(squares), _largest(squares)
    if not (least >= SMALLEST**2 and most <= LARGEST**2):
        return None
    # A difference that small may be one to a copy of the selected key.
    if not least > (MERGE * (longest + math.sqrt(most))) ** 2:
        return None
    with nullcontext() if D.size <= SINGLE else one_thread():
        return _by_rounds(D, np.sqrt(squares), math.sqrt(most))


def _by_rounds(D: Array, norms: Array, top: float) -> _Found | None:
    """Constraint generation, in one round where the rows are few."""
    m, d = D.shape
    working, active = (None, None) if m * d <= TINY else _first(D, norms)
    for at in range(1, MAX_ROUNDS + 1):
        rows = D if working is None else D.take(working, axis=0)
        # DAQP scales rows itself; the right-hand sides must have their size.
        weight = multipliers(rows, np.full(len(rows), top), active)
        if weight is None:
            return None
        on = weight.nonzero()[0]
        if not len(on):
            return None
        A, lam = rows.take(on, axis=0), weight[on] / top
        p = lam @ A
        margins = D @ p
        if working is None:
            return _judged(D, norms, A, on, lam, p, margins, at)
        missed = (margins < 1 - MISSED).nonzero()[0]
        if not len(missed):
            return _judged(D, norms, A, working[on], lam, p, margins, at)
        if len(missed) > FIRST * d:
            missed = missed[np.argpartition(margins[missed], FIRST * d)[: FIRST * d]]
        working, active = np.concatenate([working, missed]), np.concatenate([weight, np.zeros(len(missed))])
    return None


def _first(D: Array, norms: Array) -> tuple[Index | None, Array]:
    """Rows to begin with (all: None), those with the smallest cosine to the mean, and which of them may be active."""
    m, d = D.shape
    cosine = D @ (np.ones(m) @ D) / norms
    some, few = min(d, m) // 2, FIRST * d
    if m <= few + 2 * d:
        active = np.zeros(m)
        active[np.argpartition(cosine, some)[:some]] = 1
        return None, active
    active = np.zeros(few)
    active[:some] = 1
    return np.argpartition(cosine, (some, few))[:few], active


def _judged(
    D: Array, norms: Array, A: Array, on: Index, lam: Array, p: Array, margins: Array, rounds: int
) -> _Found | None:
    """The answer of active rows A = D[on] with its certificate; None where another would be better."""
    unit, length = unit_rounding(D.shape[1]), math.sqrt(p @ p)
    of_on, met = norms[on], margins[on]
    if _largest(abs(met - 1) - (FINE * unit * length) * of_on) > 0:
        better = _meeting(A)
        if better is None:
            return None
        lam, p = better
        margins, length = D @ p, math.sqrt(p @ p)
        met = margins[on]
    lost = (unit * length) * norms
    # No row is missed, active ones meet 1 to rounding, and none would rather have a negative weight.
    if not (_least(margins + lost) >= 1 and _largest(met - (unit * length) * of_on) <= 1 and _least(lam) > 0):
        return None
    combined = lam @ A
    length_up = math.sqrt(combined @ combined) + (0.5 * len(on) * EPS + unit) * float(lam @ of_on)
    gap = relative_gap(float(np.add.reduce(lam)), length_up, _least(margins - lost), length)
    if not gap <= TOLERANCES.plain:
        return None
    tight = (margins <= 1 + TOLERANCES.tight).nonzero()[0]
    return _Found(Certificate(gap, 0.0), p, length, on, lam, tight, rounds)


def _meeting(A: Array) -> tuple[Array, Array] | None:
    """Multipliers (k,) and p = A'lam that meet rows A (k, d) with 1; None for dependent rows."""
    ones = np.ones(len(A))
    factor, lam, failed = dposv((A @ A.T).T, ones, lower=1, overwrite_a=1)
    if failed:
        return None
    p = lam @ A
    for _ in range(2):
        step = dpotrs(factor, ones - A @ p, lower=1)[0]
        lam += step
        p += step @ A
    return lam, p
