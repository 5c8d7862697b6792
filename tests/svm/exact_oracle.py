"""Exact answers about rows: every float64 is an integer times a power of two, so nothing here rounds.

``decide`` says whether some w has ``row.w > 0`` on strict rows and ``row.w >= 0`` on the others, and proves it: by such
a w, or by weights u >= 0, not all zero on the strict rows, that combine the rows to zero (Farkas). The proof is checked
before it is returned, whatever found it; what finds it at last is a simplex method in integers with Bland's rule, which
always ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog

# From so many entries on a linear program in floats guesses first: 200 rows of 20 would take 15 s, and take .04.
LARGE = 500
# Arrays of Python integers.
Integers = npt.NDArray[np.object_]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Exact:
    """The numbers ``digits * 2**exponent``; digits is an array of Python integers."""

    digits: Integers
    exponent: int = 0

    @classmethod
    def of(cls, numbers: Floats) -> Exact:
        """float64 numbers, subnormal ones too, without loss."""
        mantissa, exponent = np.frexp(np.asarray(numbers, np.float64))
        whole = (mantissa * 2.0**53).astype(np.int64)
        on = whole != 0
        lowest = int(exponent[on].min()) if on.any() else 0
        shift = np.where(on, exponent - lowest, 0)
        digits = np.array([int(a) << int(s) for a, s in zip(whole.ravel(), shift.ravel(), strict=True)], dtype=object)
        return cls(digits.reshape(whole.shape), lowest - 53)

    def __getitem__(self, at: object) -> Exact:
        return Exact(self.digits[at], self.exponent)  # type: ignore[call-overload]

    def __matmul__(self, other: Exact) -> Exact:
        return Exact(np.dot(self.digits, other.digits), self.exponent + other.exponent)

    def fraction(self, at: object = ()) -> Fraction:
        """One of the numbers."""
        digits = self.digits if np.ndim(self.digits) == 0 else self.digits[at]  # type: ignore[call-overload]
        return power_of_two(self.exponent) * int(digits)

    def square(self) -> Fraction:
        """The sum of the squares."""
        return power_of_two(2 * self.exponent) * int(sum(int(a) * int(a) for a in self.digits.ravel()))


def power_of_two(exponent: int) -> Fraction:
    return Fraction(1 << exponent) if exponent >= 0 else Fraction(1, 1 << -exponent)


@dataclass(frozen=True)
class Decision:
    """Whether some direction meets the rows, and the proof: w (d,) where it does, u (m,) where none does."""

    feasible: bool
    proof: Integers


def decide(rows: Integers, strict: Mask, direction: Integers | None = None, support: Mask | None = None) -> Decision:
    """Is there a w with ``rows @ w > 0`` where strict, ``>= 0`` elsewhere?

    Args: rows (m, d) integers, strict (m,). Guesses that may save work: direction (d,), and support (m,), rows that may
        contradict each other.
    """
    if direction is not None and meets(rows, strict, direction):
        return Decision(True, direction)
    on = np.ones(len(rows), bool) if support is None else support.copy()
    if rows.size > LARGE:
        direction, guess = _by_floats(rows, strict)
        if direction is not None and meets(rows, strict, direction):
            return Decision(True, direction)
        on = guess if support is None else on
    decision = _by_cuts(rows, strict, on)
    holds = meets if decision.feasible else contradicts
    if not holds(rows, strict, decision.proof):
        raise AssertionError("the exact simplex method returned a proof that does not hold")
    return decision


def _by_cuts(rows: Integers, strict: Mask, on: Mask) -> Decision:
    """Decides on some of the rows, and adds those that its direction misses most until none is left."""
    while True:
        part = _by_simplex(rows[on], strict[on])
        if not part.feasible:
            weights = np.array([0] * len(rows), dtype=object)
            weights[on] = part.proof
            return Decision(False, weights)
        values = rows.dot(part.proof)
        missed = [at for at, sharp in enumerate(strict) if values[at] < int(sharp)]
        if not missed:
            return part
        missed.sort(key=lambda at: Fraction(values[at], 1 << _bits(rows[at])))
        on = on.copy()
        on[missed[: rows.shape[1] + 1]] = True


def _by_floats(rows: Integers, strict: Mask) -> tuple[Integers | None, Mask]:
    """A direction with the most room on rows of largest entry 1, and the rows that leave it no more."""
    units = np.array([[a / (1 << _bits(row)) for a in row] for row in rows], float)
    d = rows.shape[1]
    found = linprog(
        np.append(np.zeros(d), -1.0),
        A_ub=np.column_stack([-units, strict.astype(float)]),
        b_ub=np.zeros(len(rows)),
        bounds=[(-1, 1)] * d + [(0, 1)],
        method="highs-ds",
    )
    if found.status != 0:
        return None, np.ones(len(rows), bool)
    return Exact.of(found.x[:d]).digits, found.ineqlin.marginals < 0


def meets(rows: Integers, strict: Mask, direction: Integers) -> bool:
    """Whether a direction meets the rows."""
    values = rows.dot(direction)
    return all(value > 0 if sharp else value >= 0 for value, sharp in zip(values, strict, strict=True))


def contradicts(rows: Integers, strict: Mask, weights: Integers) -> bool:
    """Whether weights prove that no direction meets the rows."""
    return (
        all(u >= 0 for u in weights)
        and any(u > 0 for u in weights[strict])
        and not any(total != 0 for total in weights.dot(rows))
    )


def _bits(vector: Integers) -> int:
    """Of the largest entry."""
    return max((abs(int(a)).bit_length() for a in vector), default=0)


def _by_simplex(rows: Integers, strict: Mask) -> Decision:
    """The first phase for ``u >= 0, rows'u = 0, sum of the strict u = 1``; its multipliers are a w where it fails."""
    scaled, divisors, shifts = _reduced(rows)
    m, d = scaled.shape
    tableau = np.empty((d + 2, m + d + 2), dtype=object)
    tableau[:d, :m], tableau[d, :m] = scaled.T, [int(sharp) for sharp in strict]
    tableau[: d + 1, m:] = 0
    for at in range(d + 1):
        tableau[at, m + at] = 1
    tableau[d, -1] = 1
    tableau[-1] = -tableau[: d + 1].sum(axis=0)
    tableau[-1, m:-1] = 0
    basis, divisor = list(range(m, m + d + 1)), 1
    while (entering := _first_negative(tableau[-1, :m])) is not None:
        leaving = _leaving(tableau, entering, basis)
        divisor = _pivot(tableau, leaving, entering, divisor)
        basis[leaving] = entering
    if tableau[-1, -1] != 0:
        direction = tableau[-1, m : m + d] - divisor
        return Decision(True, np.array([a << s for a, s in zip(direction, shifts, strict=True)], dtype=object))
    weights = [0] * m
    for at, column in enumerate(basis):
        if column < m:
            weights[column] = tableau[at, -1]
    common = math.lcm(*divisors)
    return Decision(False, np.array([u * (common // g) for u, g in zip(weights, divisors, strict=True)], dtype=object))


def _reduced(rows: Integers) -> tuple[Integers, list[int], list[int]]:
    """Smaller integers with the same cone: columns, then rows, over powers of two and common divisors.

    Returns: ``rows * 2**shift / divisor``, the divisors of the rows, the shifts of the columns.
    """
    columns = [_bits(column) for column in rows.T]
    top = max(columns, default=0)
    shifts = [top - size if size else 0 for size in columns]
    wide = np.array([[a << s for a, s in zip(row, shifts, strict=True)] for row in rows], dtype=object)
    wide = wide.reshape(rows.shape)
    divisors = [math.gcd(*row) or 1 for row in wide]
    reduced = np.array([[a // g for a in row] for row, g in zip(wide, divisors, strict=True)], dtype=object)
    return reduced.reshape(rows.shape), divisors, shifts


def _first_negative(costs: Integers) -> int | None:
    return next((at for at, cost in enumerate(costs) if cost < 0), None)


def _leaving(tableau: Integers, entering: int, basis: list[int]) -> int:
    """The row of the smallest ratio, of the smallest basic column among equals (Bland)."""
    best = -1
    for at, pivot in enumerate(tableau[:-1, entering]):
        if pivot <= 0:
            continue
        if best < 0:
            best = at
            continue
        difference = tableau[at, -1] * tableau[best, entering] - tableau[best, -1] * pivot
        if difference < 0 or (difference == 0 and basis[at] < basis[best]):
            best = at
    return best


def _pivot(tableau: Integers, row: int, column: int, divisor: int) -> int:
    """One pivot in integers (Edmonds): all entries stay determinants over one common divisor, returned."""
    pivot, pivot_row = tableau[row, column], tableau[row].copy()
    factors = tableau[:, column].copy()
    updated = (tableau * pivot - np.multiply.outer(factors, pivot_row)) // divisor
    updated[row] = pivot_row
    tableau[:] = updated
    return int(pivot)
