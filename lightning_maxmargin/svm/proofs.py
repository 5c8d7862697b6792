"""Proofs that no direction meets the rows, and what is known of rows where neither that nor an optimum is proved."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from lightning_maxmargin.svm.certificate import NOTHING, TOLERANCES, Certificate, Status
from lightning_maxmargin.svm.certify import combination_rounding, rounding
from lightning_maxmargin.svm.norms.registry import Norm
from lightning_maxmargin.svm.rational import RationalRows, dot, positive_null_vector, rational_rows
from lightning_maxmargin.svm.rows import EPS, LARGEST, SMALLEST, Array, Index, RowProblem

Mask = npt.NDArray[np.bool_]
# Up to so many the singular values of the rows take seconds at most: 3,000 rows of 1,000.
MAX_WHITENED_NUMBERS = 3_000_000


def meets_rows(problem: RowProblem, direction: Array) -> bool:
    """Whether the direction meets every row, those with b > 0 strictly, in exact arithmetic."""
    return margin_at_least(problem, direction) > 0


def margin_at_least(problem: RowProblem, direction: Array) -> float:
    """A lower bound on min(row w / b) / ||w||; 0 where some row was not shown to be met."""
    positive, zero = problem.positive, problem.zero
    if not np.isfinite(direction).all() or not direction.any() or problem.extreme:
        return 0.0
    lower = problem.margins(direction) - rounding(problem, direction)
    if (zero is not None and (lower[zero] < 0).any()) or not (lower[positive] > 0).all():
        return 0.0
    return float((lower[positive] / problem.rhs[positive]).min()) / float(np.linalg.norm(direction))


def what_is_known(margin: float, problem: RowProblem, dual: Array, goal: str, norm: Norm = "l2") -> str:
    """Of an answer that is not certified: a margin > 0 that is reached, else a norm that any direction must have."""
    if margin > 0:
        return f"separable with margin at least {rounded_down(margin)}, optimum not proved"
    return norm_at_least(problem, dual, goal, norm)


def norm_at_least(problem: RowProblem, dual: Array, goal: str, norm: Norm) -> str:
    """Of rows that no direction was shown to meet: a norm that any direction that does must have."""
    nothing = f"no direction was shown to be the one that {goal}, nor that none does"
    ids = np.flatnonzero(dual)
    lam = dual.ravel()[ids]
    if norm != "l2" or problem.extreme or not len(ids) or not np.isfinite(lam).all() or (lam < 0).any():
        return nothing
    lam = lam / lam.max()
    combined = float(np.linalg.norm(problem.combine(ids, lam))) + combination_rounding(problem, ids, lam)
    value = float(lam @ problem.rhs.ravel()[ids])
    if not (value > 0 and combined > 0):
        return nothing
    return f"{nothing}; no direction of norm below {rounded_down(value / combined)} meets the rows"


def rounded_down(x: float) -> str:
    """x > 0 with three digits, at most x.

    Example:
        >>> rounded_down(2.5e-7 / 3)
        '8.33e-08'
    """
    text = f"{x:.2e}"
    return text if float(text) <= x else f"{float(text) - 10.0 ** (int(text.split('e')[1]) - 2):.2e}"


def certify_infeasible(problem: RowProblem, dual: Array) -> tuple[float, Status]:
    """Whether multipliers u prove that no direction meets the rows.

    "infeasible" needs u >= 0 on live rows only, rows combined to zero within rounding, and a proof that this is no
    accident: that an exactly null combination is next to u.

    Args:
        problem: the rows.
        dual: u (n, T), float64.

    Returns:
        ||D'u|| relative to sum(u ||row||), and "infeasible" | "unverified".

    Example:
        >>> import torch
        >>> problem = RowProblem.binary(torch.tensor([[1.0], [-1.0]]), torch.tensor([1, 1]))
        >>> certify_infeasible(problem, np.array([[0.0, 0.5], [0.0, 0.5]]))[1]
        'infeasible'
    """
    ids = np.flatnonzero(dual)
    u = dual.ravel()[ids]
    if not np.isfinite(dual).all() or (dual < 0).any() or dual[~problem.live].any():
        return 1.0, NOTHING.status
    missed = residual(problem, ids, u)
    proved = missed <= TOLERANCES.farkas and proves_infeasible(problem, ids, u)
    return missed, Certificate(1.0, missed, refuted=proved, sound=False).status


def residual(problem: RowProblem, ids: Index, u: Array) -> float:
    """||D'u|| relative to sum(u ||row||), 0 where all those rows vanish."""
    weight = float(u @ problem.row_norms.ravel()[ids])
    length = float(np.linalg.norm(problem.combine(ids, u)))
    return length / weight if weight > 0 else float(length > 0)


def refuted(problem: RowProblem, ids: Index, u: Array) -> Certificate:
    """The certificate of a Farkas vector u that its solver has proved, or proved to be near one."""
    return Certificate(float("inf"), residual(problem, ids, u), refuted=True)


def proves_infeasible(problem: RowProblem, ids: Index, u: Array) -> bool:
    r"""Whether u > 0 on rows ``ids`` is a Farkas vector up to a correction that is proved to exist.

    A u >= 0 with D'u = 0 exactly and b'u > 0 proves that no direction meets the rows. Of a u that combines them to
    rounding this holds where a nearby one does: see :func:`absorbs`, which needs rows that span their space by more
    than rounding, and :func:`~lightning_maxmargin.svm.rational.positive_null_vector` for few rows.
    """
    ids, u = ids[u > 0], u[u > 0]
    asks = problem.rhs.ravel()[ids] > 0
    if not asks.any() or not np.isfinite(u).all():
        return False
    if problem.extreme:
        return _made_exact(problem, ids, u)
    if (problem.row_norms.ravel()[ids][asks] == 0).any():
        return True
    ids, u, rows = _coordinates(problem, ids, u)
    return absorbs(rows, u) or _made_exact(problem, ids, u)


def _coordinates(problem: RowProblem, ids: Index, u: Array) -> tuple[Index, Array, Array]:
    """Rows of the Farkas vector and their coordinates (m, r), in which they combine to zero where the rows do.

    Rows delta z' of sequences with linearly independent queries combine to zero only if those of each sequence do: one
    of them then proves it, by its differences. Differences of unit vectors (classes) are told by all but one entry.
    """
    delta = problem.differences(ids)
    if problem.queries is None:
        return ids, u, delta
    sequence = ids // problem.live.shape[1]
    own, place = np.unique(sequence, return_inverse=True)
    if spans(problem.queries[own]):
        value = np.bincount(place, weights=u * problem.rhs.ravel()[ids])
        first = place == int(np.argmax(value))
        return ids[first], u[first], delta[first]
    if np.isin(delta, (-1, 0, 1)).all() and not delta.sum(axis=1).any():
        delta = delta[:, :-1]
    z = problem.queries[sequence]
    if delta.shape[1] * z.shape[1] > len(ids):
        return ids, u, np.zeros((len(ids), 0))
    product = delta[:, :, None] * z[:, None, :]
    vanished = (product == 0) & (delta != 0)[:, :, None] & (z != 0)[:, None, :]
    return ids, u, np.zeros((len(ids), 0)) if vanished.any() else product.reshape(len(ids), -1)


def _made_exact(problem: RowProblem, ids: Index, u: Array) -> bool:
    """Whether u, as float64 holds it, has a nearby Farkas vector in rational arithmetic."""
    m, r = len(ids), problem.dim
    if m * r * min(m, r) > TOLERANCES.rational_products or problem.is_rounded(ids):
        return False
    return _near_null_vector(problem.rational(ids), u) is not None


def absorbs(rows: Array, u: Array, equal: Mask | None = None, rhs: Array | None = None) -> bool:
    r"""Whether some u* with u* > 0 has rows'u* = 0 exactly, rows (m, r) known to a few roundings of each entry.

    Let e = rows'u, G = rows' diag(w) rows with w = u > 0 and y = G^-1 e. Then u*_i = u_i - w_i <row_i, y> combines the
    rows to e - G y = 0, and is positive where <row_i, y> < 1: it suffices that ||row_i|| ||e|| < lambda_min(G). Both
    are bounded with their rounding counted in. Rows that all but vanish in a direction, as vectors do whose entries
    sum to zero up to rounding, are judged in coordinates in which they are equally long in each.

    Args: equal, rows whose u_i may have any sign; rhs, where it must be shown that rhs'u* > 0 (without ``equal`` and
        with rhs >= 0 it is).
    """
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(rows, axis=1)
    kept = norms > 0
    # A row that is not zero but has norm 0, or one whose square overflows, is beyond what is judged here.
    told = norms[rows.any(axis=1)]
    if not kept.any() or not bool(((told >= SMALLEST) & (told <= LARGEST)).all()):
        return False
    # Which columns are zero is told before the division, in which small numbers may vanish.
    A, u = rows[np.ix_(kept, rows[kept].any(axis=0))] / norms[kept, None], u[kept] * norms[kept]
    u = u / np.abs(u).sum()
    m, r = A.shape
    if m <= r or not np.isfinite(u).all():
        return False
    weight = np.abs(u)
    if equal is not None:
        weight = np.where(equal[kept], 1.0 / m, weight)
    b = None if rhs is None else rhs[kept] / norms[kept]
    if _absorbed(A, 0.0, u, weight, b):
        return True
    with np.errstate(all="ignore"):
        whitened = _whitened(A, weight)
        return whitened is not None and _absorbed(*whitened, u, weight, b)


def _absorbed(A: Array, unknown: float, u: Array, weight: Array, rhs: Array | None) -> bool:
    """As :func:`absorbs`, of rows A (m, r) each known up to ``unknown`` besides a few roundings of its length."""
    m, r = A.shape
    length = np.linalg.norm(A, axis=1)
    longest, total = float(length.max()) + unknown, float(np.abs(u) @ length)
    e = float(np.linalg.norm(u @ A)) + (m + 12) * EPS * total + unknown
    G = (A * weight[:, None]).T @ A
    trace = max(1.0, float(weight @ length**2))
    smallest = float(np.linalg.eigvalsh(G)[0]) - (10 * r + m + 12) * EPS * trace
    if unknown:
        smallest = max(0.0, max(smallest, 0.0) ** 0.5 - unknown * float(weight.sum()) ** 0.5) ** 2
    if not smallest > 2 * e * longest:
        return False
    if rhs is None:
        return True
    lost = float(weight @ np.abs(rhs)) * longest * e / smallest + (m + 12) * EPS * float(np.abs(u) @ np.abs(rhs))
    return float(u @ rhs) > lost


def _whitened(A: Array, weight: Array) -> tuple[Array, float] | None:
    """A T for unit rows A (m, r) and an invertible T that makes sum_i w_i (A T)_i (A T)_i' = I, with a row's rounding.

    A combination of rows vanishes where that of the transformed ones does. None where some direction of T is lost.
    """
    r = A.shape[1]
    if A.size > MAX_WHITENED_NUMBERS:
        return None
    _, size, turn = np.linalg.svd(A * np.sqrt(weight)[:, None], full_matrices=False)
    if len(size) < r or not size[-1] > 0:
        return None
    # A product of r terms, its rows known to a few roundings of each entry, |turn_j| = 1 up to rounding.
    unknown = (r + 8) * EPS / size
    # Nearly orthonormal rows are linearly independent.
    straight = bool(np.abs(turn @ turn.T - np.eye(r)).sum(axis=1).max() < 0.5)
    return ((A @ turn.T) / size, 1.01 * float(np.linalg.norm(unknown))) if straight else None


def proves_contradiction(rows: Array, rhs: Array, equal: Mask, dual: Array) -> bool:
    """Whether dual (m,), >= 0 where not ``equal``, shows that no w has rows w >= rhs, = rhs where ``equal``.

    The multipliers, or a correction of theirs that is proved to exist, combine the rows to zero with rhs'dual > 0.
    """
    on = np.flatnonzero(dual)
    m, r = len(on), rows.shape[1]
    if not m:
        return False
    if absorbs(rows[on], dual[on], equal[on], rhs[on]):
        return True
    if m * r * min(m, r) > TOLERANCES.rational_products:
        return False
    return _near_null_vector(rational_rows(rows[on], rhs[on], equal[on]), dual[on]) is not None


def _near_null_vector(rows: RationalRows, dual: Array) -> list[Fraction] | None:
    """u near the multipliers that combines the rows to zero exactly and has rhs'u > 0."""
    near = [Fraction(float(x)) * f for x, f in zip(dual, rows.factor, strict=True)]
    top = max(abs(x) for x in near)
    u = positive_null_vector(rows.rows, np.array([float(x / top) for x in near]), rows.equal)
    if u is None or dot(u, rows.rhs) <= 0:
        return None
    return u


def spans(rows: Array) -> bool:
    """Whether rows (m, r) are linearly independent by more than rounding."""
    if len(rows) > rows.shape[1]:
        return False
    norms = np.linalg.norm(rows, axis=1)
    if not (norms > 0).all():
        return False
    size = np.linalg.svd(rows / norms[:, None], compute_uv=False)
    return bool(size[-1] > 100 * EPS * (len(rows) + rows.shape[1]) * size[0])
