"""The one place that says certified or infeasible, from the rows alone and independent of any solver.

What float64 may have lost is counted against the answer: margins and combinations of rows enter with bounds on their
rounding. Where these bounds are too wide and the rows are few, rational arithmetic decides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_maxmargin.svm.norms.names import Norm, dual_norm_of, norm_of
from lightning_maxmargin.svm.rational import RationalRows, positive_null_vector, reduced, whole_numbers
from lightning_maxmargin.svm.rows import EPS, LARGEST, SMALLEST, Array, Index, RowProblem
from lightning_maxmargin.svm.solution import Status

Mask = npt.NDArray[np.bool_]
# As float64 on machines without longer numbers.
LONG_EPS = float(np.finfo(np.longdouble).eps)


@dataclass(frozen=True)
class Tolerances:
    """What a certificate allows, and how much work exact arithmetic may be.

    gap: relative duality gap; solvers reach 1e-12, so that 1e-8 leaves room for rows of very different size.
    violation: of a row with right-hand side 0 (relative to ||row|| ||w||) or of an equality (and its right-hand side).
    farkas: ||D'u|| relative to sum(u ||row||); a projection leaves 1e-16.
    tight: how near to its right-hand side a row is support, relative.
    support: how near to the smallest label margin an input supports the label SVM, relative.
    label_rounding: below which two label margins are one, relative: a large norm_ratio would make it a difference.
    unit: how far the norm at the root of a rate-coupled limit may be from 1.
    plain: a gap, with the bounds on float64's rounding in it, that need not be sharpened with longer numbers, with
        which small problems took 1.2 to 1.6 times as long.
    rational_numbers: entries of the rows up to which an answer is judged in rational arithmetic; 7,000 take 45 ms.
    rational_products: rows x dimensions x rank up to which a Farkas vector is made exact.
    """

    gap: float = 1e-8
    violation: float = 1e-7
    farkas: float = 1e-12
    tight: float = 1e-7
    support: float = 1e-7
    label_rounding: float = 1e-12
    unit: float = 1e-9
    plain: float = 1e-11
    rational_numbers: int = 20_000
    rational_products: int = 100_000


TOLERANCES = Tolerances()


def relative_gap(value: Any, combined: Any, smallest: Any, length: Any, power: int = 2) -> Any:
    r"""``1 - Q/P`` of a direction w and multipliers lam, numbers or arrays of one for each instance.

    With ``P = .5 ||w||^2 / min(row w / b)^2`` over rows with b > 0 and ``Q = .5 (b'lam)^2 / ||D'lam||^2`` this is
    ``1 - (value / combined * smallest / length)^2``, free of both scales; without squares (power 1) for other norms,
    where combined is the dual norm. inf where nothing is shown: a number is not finite, zero or negative.

    Args: value b'lam, combined ||D'lam||, smallest min(row w / b), length ||w||.

    Example:
        >>> relative_gap(2.0, 2.0, 1.0, 1.0), relative_gap(0.0, 2.0, 1.0, 1.0)
        (0.0, inf)
    """
    if isinstance(value, float):
        # Of one problem: numpy's functions would take ten times as long, in loops of every solver.
        if not (0 < value < np.inf and 0 < combined < np.inf and 0 < smallest < np.inf and 0 < length < np.inf):
            return np.inf
        ratio = value / combined * (smallest / length)
        return 1 - ratio**power if ratio < 1e150 else np.inf
    with np.errstate(all="ignore"):
        ratio = value / combined * (smallest / length)
        shown = (np.minimum(value, combined) > 0) & (np.minimum(smallest, length) > 0) & (ratio < np.inf)
        return np.where(shown, 1 - ratio**power, np.inf)


def is_certified(gap: Any, violation: Any, clean: Any) -> Any:
    """The rule: gap and violation within :data:`TOLERANCES`, multipliers nonnegative and on rows only (``clean``)."""
    return (np.abs(gap) <= TOLERANCES.gap) & (violation <= TOLERANCES.violation) & clean


@dataclass(frozen=True)
class Certificate:
    """gap and violation as :func:`certify` gives them, smallest: min(row w / b), its rounding taken off; the status."""

    gap: float
    violation: float
    smallest: float
    status: Status

    @property
    def certified(self) -> bool:
        return self.status is Status.CERTIFIED


def certify(
    problem: RowProblem, direction: Array, dual: Array, norm: Norm = "l2", margins: Array | None = None
) -> tuple[float, float, Status]:
    r"""Gap, violation and status of a direction and multipliers from any solver.

    With right-hand side 1: ``P = .5||p||^2 / min(D p)^2``, ``Q = .5 (sum lam)^2 / ||D'lam||^2``, ``gap = 1 - Q/P``.
    In general p is scaled by the largest b/row over rows with b > 0, ``Q = .5 (b'lam)^2 / ||D'lam||^2``, and
    ``violation = max(0, -min row / (||row|| ||p||))`` over rows with b = 0. Margins and ||D'lam|| enter with their
    rounding counted against them, so that what float64 cannot tell is not certified; few rows are then judged in
    rational arithmetic. In another norm ``P = ||W|| / min(row/b)`` and ``Q = b'lam / ||sum lam row||_dual``.

    Args: direction (d,) or (d, dq), dual (n, T) (zero off the live rows), both float64;
        norm as in ``solve_att_svm``; margins, ``problem.margins`` of this very direction, where they are known.
    Returns: gap (1 when nothing is shown), violation (relative), "certified" | "unverified".

    Example:
        >>> import torch
        >>> problem = RowProblem.attention(torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]), torch.tensor([0]))
        >>> certify(problem, np.array([0.0, 1.0]), np.array([[0.0, 1.0]]))[2]
        'certified'
    """
    found = certificate(problem, direction, dual, norm, margins)
    return found.gap, found.violation, found.status


def certificate(
    problem: RowProblem, direction: Array, dual: Array, norm: Norm = "l2", margins: Array | None = None
) -> Certificate:
    """As :func:`certify`, with the smallest row beside."""
    nothing = Certificate(1.0, 1.0, 0.0, Status.UNVERIFIED)
    if not (np.isfinite(direction).all() and np.isfinite(dual).all()):
        return nothing
    if not problem.positive.any():
        met = not direction.any()
        return Certificate(0.0, 0.0, 1.0, Status.CERTIFIED) if met else replace(nothing, violation=0.0)
    if not direction.any():
        return nothing
    clean = bool((dual >= 0).all()) and not dual[~problem.live].any()
    gap, violation, smallest = 1.0, 1.0, 0.0
    if not problem.extreme:
        gap, violation, smallest = _in_floats(problem, direction, dual, norm, margins)
    if (
        not is_certified(gap, violation, clean)
        and clean
        and norm == "l2"
        and problem.is_small(TOLERANCES.rational_numbers)
    ):
        rows = problem.rational(problem.ids)
        gap, violation, smallest = in_rationals(rows, direction.ravel(), dual.ravel()[problem.ids])
    status = Status.CERTIFIED if is_certified(gap, violation, clean) else Status.UNVERIFIED
    return Certificate(min(gap, 1.0), violation, smallest, status)


def _in_floats(
    problem: RowProblem, direction: Array, dual: Array, norm: Norm, margins: Array | None
) -> tuple[float, float, float]:
    positive = problem.positive
    margins = problem.margins(direction) if margins is None else margins
    lost = rounding(problem, direction)
    ids = np.flatnonzero(dual)
    lam = dual.ravel()[ids]
    # Extreme scales would under- or overflow in the squares.
    lam = lam / lam.max(initial=1e-300)
    value, length = float(lam @ problem.rhs.ravel()[ids]), float(np.linalg.norm(direction))
    size, violation = norm_of(direction, norm), worst_miss(problem, margins, length)
    smallest = float(((margins - lost)[positive] / problem.rhs[positive]).min())
    combined, more = dual_norm_of(problem.combine(ids, lam), norm), combination_rounding(problem, ids, lam)
    if norm != "l2":
        # No dual norm of ours is more than sqrt(dim) times the Euclidean one.
        combined += float(np.sqrt(problem.dim)) * more
        return relative_gap(value, combined, smallest, size, 1), violation, smallest
    gap = relative_gap(value, combined + more, smallest, size)
    if gap > TOLERANCES.plain and LONG_EPS < EPS:
        smallest = sharp_smallest(problem, direction, margins)
        gap = min(gap, relative_gap(value, _long_combined(problem, ids, lam), smallest, size))
    return gap, violation, smallest


def sharp_smallest(problem: RowProblem, direction: Array, margins: Array) -> float:
    """A lower bound on min(row w / b), the rows that may be the smallest computed once more with longer numbers."""
    lost, b = rounding(problem, direction), problem.rhs
    most = float(((margins + lost)[problem.positive] / b[problem.positive]).min())
    near = np.flatnonzero(problem.positive & (margins - lost <= most * b))
    return float((_long_margins(problem, direction, near) / b.ravel()[near]).min())


def _long_differences(problem: RowProblem, ids: Index) -> Any:
    i, t = np.divmod(ids, problem.keys.shape[1])
    return problem.keys[i, problem.selected[i]].astype(np.longdouble) - problem.keys[i, t]


def _long_margins(problem: RowProblem, direction: Array, ids: Index) -> Array:
    """Lower bounds on margins, computed with longer numbers where the machine has them (64 bits instead of 53)."""
    long = direction.astype(np.longdouble)
    p = long if problem.queries is None else problem.queries[ids // problem.keys.shape[1]] @ long.T
    lost = (
        problem.unit_rounding() * (LONG_EPS / EPS) * float(np.linalg.norm(direction)) * problem.row_norms.ravel()[ids]
    )
    return np.asarray((_long_differences(problem, ids) * p).sum(axis=1) - lost, np.float64)


def _long_combined(problem: RowProblem, ids: Index, lam: Array) -> float:
    """An upper bound on ||D'lam||, computed with longer numbers."""
    weighted = _long_differences(problem, ids) * lam[:, None]
    z = None if problem.queries is None else problem.queries[ids // problem.keys.shape[1]]
    combined = weighted.sum(axis=0) if z is None else weighted.T @ z
    return float(np.sqrt((combined**2).sum())) + combination_rounding(problem, ids, lam) * (LONG_EPS / EPS)


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


def what_is_known(problem: RowProblem, direction: Array, dual: Array, goal: str, norm: Norm) -> str:
    """Of an answer that is not certified: a margin that is reached, else a norm that any direction must have."""
    margin = margin_at_least(problem, direction)
    if margin > 0:
        return f"separable with margin at least {rounded_down(margin)}, optimum not proved"
    return norm_at_least(problem, dual, goal, norm)


def norm_at_least(problem: RowProblem, dual: Array, goal: str, norm: Norm = "l2") -> str:
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


def worst_miss(problem: RowProblem, margins: Array, length: float) -> float:
    """The most that a row with right-hand side 0 is missed by, relative to ||row|| times the direction's length."""
    zero = problem.zero
    return 0.0 if zero is None else missed_share(margins[zero], problem.row_norms[zero] * length)


def missed_share(margins: Array, sizes: Array) -> float:
    """The most that rows with right-hand side 0 are missed by, relative to their sizes ||row|| ||w||; at least 0."""
    shares = np.divide(-margins, sizes, out=np.zeros_like(sizes), where=sizes > 0)
    return max(0.0, float(shares.max(initial=0.0)))


def rounding(problem: RowProblem, direction: Array) -> Array:
    """What float64 may have lost in each explicit margin, bound on a product of d rounded differences: (n, T)."""
    return problem.unit_rounding() * float(np.linalg.norm(direction)) * problem.row_norms


def combination_rounding(problem: RowProblem, ids: Index, lam: Array) -> float:
    """What float64 may have lost in ||D'lam||: a sum over the rows of rounded differences."""
    return (0.5 * len(ids) * EPS + problem.unit_rounding()) * float(np.abs(lam) @ problem.row_norms.ravel()[ids])


def in_rationals(rows: RationalRows, w: Array, dual: Array) -> tuple[float, float, float]:
    """Gap, violation and smallest row of w (r,) and dual (m,), without rounding."""
    point, lam = (
        [Fraction(float(x)) for x in w],
        [Fraction(float(x)) * f for x, f in zip(dual, rows.factor, strict=True)],
    )
    margins = [sum((int(a) * x for a, x in zip(row, point, strict=True)), Fraction(0)) for row in rows.rows]
    smallest = min((m / b for m, b in zip(margins, rows.rhs, strict=True) if b > 0), default=Fraction(0))
    square, missed = sum((x * x for x in point), Fraction(0)), 0.0
    for row, margin, b in zip(rows.rows, margins, rows.rhs, strict=True):
        if b == 0 and margin < 0:
            missed = max(missed, min(float(min(margin**2 / (square * int(row @ row)), Fraction(1))) ** 0.5, 1.0))
    combined = [sum((x * int(a) for x, a in zip(lam, column, strict=True)), Fraction(0)) for column in rows.rows.T]
    below = sum((x * x for x in combined), Fraction(0)) * square
    value = sum((x * b for x, b in zip(lam, rows.rhs, strict=True)), Fraction(0))
    if min(smallest, below, value) <= 0:
        return 1.0, missed, 0.0
    return float(1 - min((value * smallest) ** 2 / below, Fraction(2))), missed, float(min(smallest, Fraction(2)))


def exact_gap(rows: Array, rhs: Array, w: Array, dual: Array) -> float:
    """``1 - (rhs'dual)^2 / (||rows'dual||^2 ||w||^2)`` without rounding, but for the last; 1 where nothing is shown."""
    lam = [Fraction(float(x)) for x in dual]
    combined = [
        sum((x * Fraction(float(a)) for x, a in zip(lam, column, strict=True)), Fraction(0)) for column in rows.T
    ]
    below = sum((x * x for x in combined), Fraction(0)) * sum((Fraction(float(x)) ** 2 for x in w), Fraction(0))
    value = sum((x * Fraction(float(b)) for x, b in zip(lam, rhs, strict=True)), Fraction(0))
    return 1.0 if min(below, value) <= 0 else float(1 - min(value**2 / below, Fraction(2)))


def exact_violation(rows: Array, rhs: Array, equal: Mask, w: Array) -> float:
    """The most that a row misses its right-hand side by, over |rhs| or where that is 0 ||row|| ||w||, unrounded."""
    point, worst = [Fraction(float(x)) for x in w], 0.0
    square = sum((x * x for x in point), Fraction(0))
    for row, b, same in zip(rows, rhs, equal, strict=True):
        numbers, right = [Fraction(float(x)) for x in row], Fraction(float(b))
        missed = right - sum((x * y for x, y in zip(numbers, point, strict=True)), Fraction(0))
        if missed > 0 or (same and missed):
            size = right**2 or square * sum((x * x for x in numbers), Fraction(0))
            worst = max(worst, float(min(missed**2 / size, Fraction(1))) ** 0.5 if size else 1.0)
    return worst


def certify_infeasible(problem: RowProblem, dual: Array) -> tuple[float, Status]:
    """||D'u|| relative to sum(u ||row||) for u = dual (n, T), and "infeasible" | "unverified".

    "infeasible" needs u >= 0 on live rows only, rows combined to zero within rounding, and the proof of
    :func:`proves_infeasible` that this is no accident.
    """
    ids = np.flatnonzero(dual)
    u = dual.ravel()[ids]
    if not np.isfinite(dual).all() or (dual < 0).any() or dual[~problem.live].any():
        return 1.0, Status.UNVERIFIED
    missed = residual(problem, ids, u)
    proved = missed <= TOLERANCES.farkas and proves_infeasible(problem, ids, u)
    return missed, Status.INFEASIBLE if proved else Status.UNVERIFIED


def residual(problem: RowProblem, ids: Index, u: Array) -> float:
    """||D'u|| relative to sum(u ||row||), 0 where all those rows vanish."""
    weight = float(u @ problem.row_norms.ravel()[ids])
    length = float(np.linalg.norm(problem.combine(ids, u)))
    return length / weight if weight > 0 else float(length > 0)


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
    rows to e - G y = 0, and is positive where <row_i, y> < 1: for rows of length 1 it suffices that
    ||e|| < lambda_min(G). Both are bounded with their rounding counted in.

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
    e = float(np.linalg.norm(u @ A)) + (m + 12) * EPS
    G = (A * weight[:, None]).T @ A
    smallest = float(np.linalg.eigvalsh(G)[0]) - (10 * r + m + 12) * EPS * max(1.0, float(weight.sum()))
    if not smallest > 2 * e:
        return False
    if rhs is None:
        return True
    b = rhs[kept] / norms[kept]
    lost = float(weight @ np.abs(b)) * e / smallest + (m + 12) * EPS * float(np.abs(u) @ np.abs(b))
    return float(u @ b) > lost


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
    numbers, exponents = whole_numbers(rows[on])
    u = _near_null_vector(reduced(numbers, exponents, rhs[on], equal[on]), dual[on])
    return u is not None


def _near_null_vector(rows: RationalRows, dual: Array) -> list[Fraction] | None:
    """u near the multipliers that combines the rows to zero exactly and has rhs'u > 0."""
    near = [Fraction(float(x)) * f for x, f in zip(dual, rows.factor, strict=True)]
    top = max(abs(x) for x in near)
    u = positive_null_vector(rows.rows, np.array([float(x / top) for x in near]), rows.equal)
    if u is None or sum((x * b for x, b in zip(u, rows.rhs, strict=True)), Fraction(0)) <= 0:
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
