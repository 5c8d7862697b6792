"""At which steps a run is evaluated."""

from __future__ import annotations


def next_step(step: int, per_decade: int) -> int:
    """The first step after ``step`` of the geometric schedule 10^(k / per_decade), rounded: 1, 2, 3, ... at first.

    Example:
        >>> [next_step(s, per_decade=3) for s in (0, 1, 2, 5, 10)]
        [1, 2, 5, 10, 22]
    """
    k = 0
    while (value := round(10 ** (k / per_decade))) <= step:
        k += 1
    return value
