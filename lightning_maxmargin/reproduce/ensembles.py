"""What the experiments on many random instances share: percentiles as lines, counts and speed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from torch import Tensor

from lightning_maxmargin.reproduce.naive import loop_rate
from lightning_maxmargin.reproduce.panel import Array, Line
from lightning_maxmargin.reproduce.problems import Problems


def percentiles(x: Array, values: Array, label: str, color: str | None = None, kind: str = "line") -> Line:
    """Median of (k, B) over the instances, a band from the 10th to the 90th percentile; NaN is left out.

    Example:
        >>> percentiles(np.arange(1), np.array([[1.0, 2.0, 3.0, np.nan]]), "").y.tolist()
        [2.0]
    """
    low, middle, high = np.nanpercentile(values, [10, 50, 90], axis=1)
    return Line(x, middle, label, color, kind, low=low, high=high)  # type: ignore[arg-type]


def converged_note(settled: Tensor, what: str = "runs") -> str:
    """One sentence on how many converged, for the notes."""
    count = int(settled.sum())
    return (
        f"{count:,} of {settled.numel():,} {what} converged: margin at least half of the SVM's, every selected token "
        "with at least .99 of the attention. The others are counted and left out of medians."
    )


class Speed:
    """CPU seconds of training beside those that the public loop would take on the same instances.

    Example:
        >>> from lightning_maxmargin.reproduce.problems import draw
        >>> speed = Speed()
        >>> with speed.training(draw(2, 3, 3, 2), steps=10):
        ...     pass
        >>> speed.ratio > 1
        True
    """

    def __init__(self) -> None:
        self._ours = self._loop = 0.0

    @contextmanager
    def training(self, drawn: Problems, steps: int) -> Iterator[None]:
        """Around the training of all of them for so many steps each."""
        start = time.process_time()
        yield
        self._ours += time.process_time() - start
        q = None if drawn.queries is None else drawn.queries[0]
        self._loop += steps * len(drawn) / loop_rate(drawn.keys[0], drawn.labels[0], 150, q)

    @property
    def ratio(self) -> float:
        """How many times as long the loop would take."""
        return self._loop / max(self._ours, 1e-9)
