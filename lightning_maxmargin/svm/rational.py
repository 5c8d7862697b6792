"""Rows as whole numbers, and the quadratic program over them solved without rounding.

Every float64 is a whole number times a power of two, so that ``min .5||w||^2 s.t. rows w >= rhs`` (or = rhs) has a
rational answer: the shortest w and its multipliers, or a Farkas vector. It is the second opinion on few rows, where
floating point cannot tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Whole = npt.NDArray[np.object_]
Numbers = Sequence[Fraction]
# Numbers and rank of the rows up to which rational arithmetic is asked: a tenth of a second at 100 rows of 20, seconds
# at the most; a rank of 39 took 24 s.
RATIONAL_NUMBERS, RATIONAL_RANK = 10_000, 24
# Powers of two that numbers of a direction or of multipliers may have.
SMALLEST_POWER, LARGEST_POWER = -1021, 1024


@dataclass(frozen=True)
class RationalRows:
    """rows (m, r) whole numbers, rhs (m,), equal (m,): <w, rows_i> >= rhs_i, or = rhs_i where ``equal``.

    Row i of the user is ``factor_i > 0`` times rows_i, rhs_i is the user's divided by it.
    """

    rows: Whole
    rhs: list[Fraction]
    equal: list[bool]
    factor: list[Fraction]

    def multipliers(self, lam: Numbers) -> list[Fraction]:
        """Multipliers of the user's rows for those of the whole ones."""
        return [value / factor for value, factor in zip(lam, self.factor, strict=True)]


@dataclass(frozen=True)
class RationalAnswer:
    """The shortest w (r,) = sum lam row with lam (m,), >= 0 on inequalities; or a Farkas vector lam and w None."""

    w: list[Fraction] | None
    lam: list[Fraction]
    steps: int


def whole_numbers(x: Array) -> tuple[Whole, list[int]]:
    """x (m, r) as whole numbers times 2^exponent of each row, exactly."""
    mantissa, exponent = np.frexp(x)
    shift = np.where(x != 0, exponent.astype(np.int64), np.iinfo(np.int64).max)
    lowest = shift.min(axis=1, initial=np.iinfo(np.int64).max)
    lowest = np.where(lowest == np.iinfo(np.int64).max, 0, lowest)
    up = np.where(x != 0, shift - lowest[:, None], 0)
    numbers = np.ldexp(mantissa, 53).astype(np.int64).astype(object)
    return np.left_shift(numbers, up.astype(object)), [int(e) - 53 for e in lowest]


def dot(x: Iterable[Any], y: Iterable[Any]) -> Fraction:
    """sum x_i y_i of whole numbers and fractions."""
    return sum((a * b for a, b in zip(x, y, strict=True)), Fraction(0))


def power(exponent: int) -> Fraction:
    """2^exponent."""
    return Fraction(1 << exponent) if exponent >= 0 else Fraction(1, 1 << -exponent)


def reduced(rows: Whole, exponents: Sequence[int], rhs: Array, equal: Mask | None = None) -> RationalRows:
    """Rows ``2^exponent_i rows_i`` with float64 right-hand sides, common divisors taken out."""
    factor = []
    rows = rows.copy()
    for i, exponent in enumerate(exponents):
        divisor = gcd(*rows[i]) or 1
        rows[i] //= divisor
        factor.append(divisor * power(exponent))
    b = [Fraction(float(value)) / f for value, f in zip(rhs, factor, strict=True)]
    return RationalRows(rows, b, [False] * len(b) if equal is None else equal.tolist(), factor)


def rational_rows(rows: Array, rhs: Array, equal: Mask | None = None) -> RationalRows:
    """Rows (m, r) and right-hand sides (m,) of float64 without rounding."""
    return reduced(*whole_numbers(rows), rhs, equal)


def solve_linear(matrix: list[list[int]], right: Numbers) -> list[Fraction] | None:
    """x with matrix x = right for a square matrix of whole numbers; None where it is singular (Bareiss)."""
    size, shared = len(matrix), lcm(*(value.denominator for value in right)) if right else 1
    a = [[*row, int(value * shared)] for row, value in zip(matrix, right, strict=True)]
    before = 1
    for k in range(size):
        at = next((i for i in range(k, size) if a[i][k]), None)
        if at is None:
            return None
        a[k], a[at] = a[at], a[k]
        top, pivot = a[k], a[k][k]
        for i in range(k + 1, size):
            row, first = a[i], a[i][k]
            a[i] = [0] * (k + 1) + [(pivot * row[j] - first * top[j]) // before for j in range(k + 1, size + 1)]
        before = pivot
    x = [Fraction(0)] * size
    for k in reversed(range(size)):
        rest = Fraction(a[k][size]) - sum((a[k][j] * x[j] for j in range(k + 1, size)), Fraction(0))
        x[k] = rest / a[k][k]
    return [value / shared for value in x]


def floats(numbers: Sequence[Fraction]) -> tuple[Array, int]:
    """x and e with numbers = x 2^e to rounding, the largest |x| between 1/4 and 1: any size that fractions have."""
    top = max((abs(value) for value in numbers), default=Fraction(0))
    exponent = 0 if top == 0 else top.numerator.bit_length() - top.denominator.bit_length() + 1
    scale = power(-exponent)
    return np.array([float(value * scale) for value in numbers]), exponent


def shifted(x: Array, power: int) -> Array:
    """x 2^power, or the nearest power of two that leaves every entry its digits: multipliers may have any scale.

    Example:
        >>> bool((shifted(np.array([1.0, 0.5]), -2000) > 0).all())
        True
    """
    exponents = np.frexp(x[x != 0])[1]
    if not len(exponents):
        return x
    return np.ldexp(x, min(max(power, SMALLEST_POWER - int(exponents.min())), LARGEST_POWER - int(exponents.max())))


def positive_null_vector(rows: Whole, near: Array, equal: Sequence[bool]) -> list[Fraction] | None:
    """u with u' rows = 0 exactly, near u > 0 of floating point and positive where not ``equal``; None if not found.

    rows (m, r), near (m,). Entries that elimination determines are the largest ones, which a rounding's correction
    leaves positive; the others keep their float64 value.
    """
    order = np.argsort(-np.abs(near), kind="stable").tolist()
    system = [[int(rows[i, j]) for i in order] for j in range(rows.shape[1])]
    pivots: list[int] = []
    top, before = 0, 1
    for column in range(len(order)):
        at = next((i for i in range(top, len(system)) if system[i][column]), None)
        if at is None:
            continue
        system[top], system[at] = system[at], system[top]
        head, pivot = system[top], system[top][column]
        for i in range(len(system)):
            if i != top and (i > top or system[i][column]):
                row, first = system[i], system[i][column]
                system[i] = [(pivot * x - first * y) // before for x, y in zip(row, head, strict=True)]
            elif i != top:
                system[i] = [pivot * x // before for x in system[i]]
        before = pivot
        pivots.append(column)
        top += 1
        if top == len(system):
            break
    u = [Fraction(float(near[i])) for i in order]
    free = [column for column in range(len(order)) if column not in set(pivots)]
    for at, column in enumerate(pivots):
        row = system[at]
        u[column] = -sum((row[j] * u[j] for j in free), Fraction(0)) / row[column]
    out = [Fraction(0)] * len(order)
    for place, i in enumerate(order):
        out[i] = u[place]
    return out if all(value > 0 or equal[i] for i, value in enumerate(out)) else None


class _DualMethod:
    """Goldfarb and Idnani's dual active set over rationals: each step adds a missed row and keeps lam >= 0."""

    def __init__(self, problem: RationalRows) -> None:
        self.problem = problem
        self.active: list[int] = []
        self.lam: list[Fraction] = []
        self.products: dict[tuple[int, int], int] = {}
        self.sizes = [max(float(abs(value)) for value in row) if any(row) else 1.0 for row in _floats(problem.rows)]

    def product(self, i: int, j: int) -> int:
        key = (min(i, j), max(i, j))
        if key not in self.products:
            self.products[key] = int(self.problem.rows[i] @ self.problem.rows[j])
        return self.products[key]

    def begin(self, active: Sequence[int]) -> None:
        """Starts from rows met with equality, where their multipliers are nonnegative."""
        lam = solve_linear(
            [[self.product(i, j) for j in active] for i in active], [self.problem.rhs[i] for i in active]
        )
        if lam is not None and all(x >= 0 or self.problem.equal[i] for i, x in zip(active, lam, strict=True)):
            self.active, self.lam = list(active), lam

    def point(self) -> tuple[Whole, int]:
        """w as whole numbers over a shared denominator."""
        shared = lcm(*(value.denominator for value in self.lam)) if self.lam else 1
        w = np.array([0] * self.problem.rows.shape[1], dtype=object)
        for i, value in zip(self.active, self.lam, strict=True):
            w = w + int(value * shared) * self.problem.rows[i]
        return w, shared

    def missed(self) -> tuple[int, Fraction] | None:
        """The row missed most for its size, equalities first, and <w, row> - rhs of it; None where all are met."""
        w, shared = self.point()
        margins = self.problem.rows @ w
        worst: tuple[float, int, Fraction] | None = None
        for i, margin in enumerate(margins):
            b = self.problem.rhs[i]
            slack = int(margin) * b.denominator - b.numerator * shared
            if slack < 0 or (slack > 0 and self.problem.equal[i]):
                exact = Fraction(slack, b.denominator * shared)
                depth = abs(_as_float(exact)) / self.sizes[i] + (1e300 if self.problem.equal[i] else 0.0)
                if worst is None or depth > worst[0]:
                    worst = (depth, i, exact)
        return None if worst is None else worst[1:]

    def add(self, new: int, slack: Fraction) -> list[Fraction] | None:
        """Steps until row ``new`` is met; a Farkas vector of (active, new) where it cannot be, else None."""
        # An equality missed from above is the inequality of the negative row.
        sign = 1 if slack < 0 else -1
        need, weight = -abs(slack), Fraction(0)
        while True:
            across = [Fraction(sign * self.product(i, new)) for i in self.active]
            shares = solve_linear([[self.product(i, j) for j in self.active] for i in self.active], across)
            assert shares is not None
            outside = self.product(new, new) - dot(shares, across)
            blocking = [
                (self.lam[k] / shares[k], k)
                for k, i in enumerate(self.active)
                if shares[k] > 0 and not self.problem.equal[i]
            ]
            longest = min(blocking, default=None)
            if outside == 0 and longest is None:
                return [-s for s in shares] + [Fraction(sign)]
            full = None if outside == 0 else -need / outside
            step = full if longest is None or (full is not None and full <= longest[0]) else longest[0]
            assert step is not None
            self.lam = [value - step * s for value, s in zip(self.lam, shares, strict=True)]
            weight += step
            need += step * outside
            if step == full:
                self.active.append(new)
                self.lam.append(sign * weight)
                return None
            assert longest is not None
            del self.active[longest[1]], self.lam[longest[1]]


def _floats(rows: Whole) -> list[list[float]]:
    return [[_as_float(Fraction(int(x))) for x in row] for row in rows]


def _as_float(x: Fraction) -> float:
    try:
        return float(x)
    except OverflowError:
        return float("inf") if x > 0 else float("-inf")


def solve_rational(problem: RationalRows, start: Sequence[int] = ()) -> RationalAnswer:
    """The shortest w that meets the rows, or the proof that none does; always one of the two.

    Args: start, rows thought active.

    Example:
        >>> rows, exponents = whole_numbers(np.array([[1.0, 2e-14], [-1.0, 2e-14]]))
        >>> answer = solve_rational(reduced(rows, exponents, np.ones(2)))
        >>> [float(x) for x in answer.w]
        [0.0, 50000000000000.0]
    """
    method, m = _DualMethod(problem), len(problem.rhs)
    if len(start):
        method.begin(start)
    steps = 0
    while (found := method.missed()) is not None:
        steps += 1
        new, slack = found
        farkas = method.add(new, slack)
        lam = [Fraction(0)] * m
        if farkas is not None:
            for i, value in zip([*method.active, new], farkas, strict=True):
                lam[i] = value
            return RationalAnswer(None, lam, steps)
    lam = [Fraction(0)] * m
    for i, value in zip(method.active, method.lam, strict=True):
        lam[i] = value
    w, shared = method.point()
    return RationalAnswer([Fraction(int(x), shared) for x in w], lam, steps)
