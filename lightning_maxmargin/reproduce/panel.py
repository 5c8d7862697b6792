"""What a figure shows, as data: the functions say what, one place draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Array = np.ndarray


@dataclass
class Line:
    """A line, dots or a ray.

    Attributes:
        x: (k,).
        y: (k,).
        label: in the legend; none where empty.
        color: a name of :data:`lightning_maxmargin.figures.style.COLORS`, any matplotlib colour, or None for the next.
        kind: ``line``; ``dashed``; ``dotted``; ``dots`` without a line; ``arrows``, a line from a dot with a head every
            ``every``; ``ray``, dashed from the origin through (x, y) to the edge.
        every: points between two arrow heads.
        low: (k,), lower edge of a shaded band, with ``high``.
        high: (k,).
    """

    x: Array
    y: Array
    label: str = ""
    color: str | None = None
    kind: Literal["line", "dashed", "dotted", "dots", "arrows", "ray"] = "line"
    every: int = 10
    low: Array | None = None
    high: Array | None = None


@dataclass
class Panel:
    """One set of axes.

    Attributes:
        title: what is seen.
        xlabel: with its unit.
        ylabel: with its unit.
        lines: what is drawn.
        log: which axes are logarithmic: ``""``, ``"x"``, ``"y"`` or ``"xy"``.
        xlim: from, to.
        ylim: from, to.
        legend: inside where it covers least, or ``below`` the axes.
        image: (rows, columns), a heat map in place of lines.
        rows: names of its rows; an empty one gets no tick.
        columns: names of its columns, likewise.
        digits: whether the numbers stand in its cells; otherwise a bar says what the colours mean.
        square: whether its cells are square.
    """

    title: str
    xlabel: str = ""
    ylabel: str = ""
    lines: list[Line] = field(default_factory=list)
    log: Literal["", "x", "y", "xy"] = ""
    xlim: tuple[float, float] | None = None
    ylim: tuple[float, float] | None = None
    legend: Literal["inside", "below"] = "inside"
    image: Array | None = None
    rows: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    digits: bool = True
    square: bool = False


def ray(direction: Array, label: str, color: str) -> Line:
    """The dashed ray of an SVM direction (2,)."""
    return Line(np.array([float(direction[0])]), np.array([float(direction[1])]), label, color, "ray")


def curve(numbers: dict[str, float], key: str, at: Sequence[float], label: str, *look: Any) -> Line:
    """The numbers ``KEY/X`` over x, with colour and kind of the line.

    Example:
        >>> curve({"rank/2": 1.0, "rank/4": 3.0}, "rank", [2, 4], "").y.tolist()
        [1.0, 3.0]
    """
    return Line(np.array(at), np.array([numbers[f"{key}/{x:g}"] for x in at]), label, *look)


def percentiles(x: Array, values: Array, label: str, color: str | None = None, kind: str = "line") -> Line:
    """Median of (k, B) over the instances, a band from the 10th to the 90th percentile; NaN is left out.

    Example:
        >>> percentiles(np.arange(1), np.array([[1.0, 2.0, 3.0, np.nan]]), "").y.tolist()
        [2.0]
    """
    low, middle, high = np.nanpercentile(values, [10, 50, 90], axis=1)
    return Line(x, middle, label, color, kind, low=low, high=high)  # type: ignore[arg-type]
