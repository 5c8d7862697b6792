"""What the experiments on many random instances share: the instances, percentiles as lines, counts and speed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.core.stack import InstanceStack
from lightning_maxmargin.data import RandomData
from lightning_maxmargin.reproduce.naive import loop_rate
from lightning_maxmargin.reproduce.panel import Array, Line


@dataclass(frozen=True)
class Drawn(InstanceStack):
    """B instances of unit vectors, one for each seed, in float64, with their head (B, d), the unit vector v."""

    head: Tensor = field(kw_only=True)

    def take(self, at: Tensor) -> Drawn:
        """Instances ``at``, of which some may come several times."""
        part = self.part(at)
        return Drawn(part.keys, part.labels, part.values, part.queries, head=self.head[at])

    def given_token_scores(self) -> Tensor:
        """gamma of the given head, (B, n, T)."""
        return self.token_scores(self.head)


def draw(
    seeds: int,
    n: int,
    T: int,
    d: int,
    queries: bool = False,
    labels: Literal["random", "sign"] = "sign",
) -> Drawn:
    """Instances of the seeds 0, 1, ...; each is the :class:`RandomData` of its seed.

    Args:
        seeds: how many.
        n: sequences of an instance.
        T: tokens.
        d: dimensions.
        queries: whether each sequence has a query of its own.
        labels: ``random``, or ``sign``: as the head gives them under uniform attention.

    Example:
        >>> draw(3, 5, 4, 2).keys.shape
        torch.Size([3, 5, 4, 2])
    """
    sources = [RandomData(n, T, d, seed, queries, labels) for seed in range(seeds)]
    parts = [source.load()["train"] for source in sources]
    z: list[Any] = [part.queries for part in parts]
    heads: list[Any] = [source.head for source in sources]
    keys, signs = torch.stack([part.keys for part in parts]), torch.stack([part.labels for part in parts])
    return Drawn(keys, signs, keys, torch.stack(z) if queries else None, head=torch.stack(heads))


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
        >>> speed = Speed()
        >>> with speed.training(draw(2, 3, 3, 2), steps=10):
        ...     pass
        >>> speed.ratio > 1
        True
    """

    def __init__(self) -> None:
        self._ours = self._loop = 0.0

    @contextmanager
    def training(self, drawn: Drawn, steps: int) -> Iterator[None]:
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
