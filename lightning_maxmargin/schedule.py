"""At which steps a run is evaluated, and how far one ``training_step`` may go before that."""

from __future__ import annotations

import math
from typing import Any


def next_step(step: int, per_decade: int) -> int:
    """The first step after ``step`` of the geometric schedule 10^(k / per_decade), rounded: 1, 2, 3, ... at first.

    Example:
        >>> [next_step(s, per_decade=3) for s in (0, 1, 2, 5, 10)]
        [1, 2, 5, 10, 22]
    """
    # One before the k of the last number that rounds to step: counting from 0 takes for ever with many per decade.
    k = max(0, math.floor(per_decade * math.log10(step + 0.5)) - 1)
    while (value := round(10 ** (k / per_decade))) <= step:
        k += 1
    return value


def steps_now(trainer: Any, pause_at: int | None, inner: int) -> int:
    """Up to ``inner`` optimisation steps, but not past the last one nor past the one that is evaluated next.

    Args:
        trainer: of the run, whose ``global_step`` counts them.
        pause_at: what :func:`next_step` said, or None.
        inner: most steps.
    """
    stops = [s for s in (trainer.max_steps, pause_at) if s is not None and s > trainer.global_step]
    return min([inner, *(s - trainer.global_step for s in stops)])


def affordable(spent: float, expected: float, elapsed: float, share: float) -> bool:
    """Whether one more evaluation keeps all of them within their share of the run's time so far.

    Args:
        spent: seconds of the evaluations made.
        expected: seconds of the next.
        elapsed: seconds of the run so far.
        share: from above 0 to 1; 1 is always affordable, so that the schedule is one of steps alone.

    Example:
        >>> affordable(spent=1.0, expected=0.5, elapsed=20.0, share=0.05), affordable(1.0, 0.5, 30.0, 0.05)
        (False, True)
    """
    return share >= 1 or spent + expected <= share * elapsed
