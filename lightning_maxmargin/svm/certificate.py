"""What is shown of an answer, and the status that follows from it: nothing else in the package gives a status."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Any

import numpy as np


class Status(StrEnum):
    """What is known of an answer; compares equal to its name as a string.

    Example:
        >>> Status.CERTIFIED == "certified", Status.CERTIFIED.text
        (True, 'rows met and duality gap closed, both checked with their rounding')
    """

    CERTIFIED = "certified"
    INFEASIBLE = "infeasible"
    UNVERIFIED = "unverified"

    @property
    def text(self) -> str:
        """What it means, in a line."""
        return {
            "certified": "rows met and duality gap closed, both checked with their rounding",
            "infeasible": "no direction meets the rows: a Farkas vector was proved to exist",
            "unverified": "neither was shown; the message says what is known",
        }[self]

    def __repr__(self) -> str:
        return repr(self.value)


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
    r"""``1 - Q/P`` of a direction w and multipliers lam: floats, fractions, or arrays of one for each instance.

    With ``P = .5 ||w||^2 / min(row w / b)^2`` over rows with b > 0 and ``Q = .5 (b'lam)^2 / ||D'lam||^2`` this is
    ``1 - (value / combined * smallest / length)^2``, free of both scales; without squares (power 1) for other norms,
    where combined is the dual norm, and where all four are squares. inf where nothing is shown: a number is not finite,
    zero or negative.

    Args: value b'lam, combined ||D'lam||, smallest min(row w / b), length ||w||.

    Example:
        >>> relative_gap(2.0, 2.0, 1.0, 1.0), relative_gap(0.0, 2.0, 1.0, 1.0)
        (0.0, inf)
    """
    if isinstance(value, float | Fraction):
        # Of one problem: numpy's functions would take ten times as long, in loops of every solver.
        if not (0 < value < np.inf and 0 < combined < np.inf and 0 < smallest < np.inf and 0 < length < np.inf):
            return np.inf
        ratio = value / combined * (smallest / length)
        return 1 - ratio**power if ratio < 1e150 else np.inf
    with np.errstate(all="ignore"):
        ratio = value / combined * (smallest / length)
        shown = (np.minimum(value, combined) > 0) & (np.minimum(smallest, length) > 0) & (ratio < np.inf)
        return np.where(shown, 1 - ratio**power, np.inf)


def is_certified(gap: Any, violation: Any, sound: Any) -> Any:
    """The rule, for numbers or arrays: gap and violation within :data:`TOLERANCES`, and all else ``sound``."""
    return (abs(gap) <= TOLERANCES.gap) & (violation <= TOLERANCES.violation) & sound


def status_of(certified: bool, refuted: bool = False) -> Status:
    """The status of what :func:`is_certified`, or of rows for which a Farkas vector was proved to exist."""
    if refuted:
        return Status.INFEASIBLE
    return Status.CERTIFIED if certified else Status.UNVERIFIED


@dataclass(frozen=True)
class Certificate:
    """What is shown of a direction and multipliers, or of a Farkas vector.

    gap: :func:`relative_gap`, at most 1; inf of a Farkas vector. violation: the most that a row misses by, relative;
        of a Farkas vector ||D'u|| relative to sum(u ||row||).
    sound: whether all else holds that a certificate rests on: multipliers nonnegative and on rows only, and what the
        problem asks besides.
    smallest: min(row w / b), its rounding taken off. refuted: whether a Farkas vector was proved to exist.
    """

    gap: float
    violation: float
    sound: bool = True
    smallest: float = 1.0
    refuted: bool = False

    @property
    def certified(self) -> bool:
        return not self.refuted and bool(is_certified(self.gap, self.violation, self.sound))

    @property
    def status(self) -> Status:
        """The status that follows."""
        return status_of(self.certified, self.refuted)


#: Nothing is shown.
NOTHING = Certificate(1.0, 1.0, sound=False, smallest=0.0)
