"""The learning rate of a text selector over its steps."""

from __future__ import annotations


def cooled(step: int, steps: int, share: float, last: int | None = None) -> float:
    """The factor ``min(1, (steps - step) / (share last))`` of the rate: constant, and over the end linearly to zero.

    A constant rate ends wherever its last batch left it: over the last ten epochs on 4,907 questions the accuracy of
    one run swung from .912 to .958, and ended at .912.

    Args:
        step: the number of the step, from 0.
        steps: of the whole run.
        share: of ``last``, over which the rate falls; 0 keeps it constant.
        last: how many of the last steps train these parameters; all where None.

    Example:
        >>> [cooled(step, steps=4, share=0.5) for step in range(4)]
        [1.0, 1.0, 1.0, 0.5]
    """
    falling = share * (steps if last is None else last)
    return min(1.0, max(0.0, (steps - step) / falling)) if falling else 1.0
