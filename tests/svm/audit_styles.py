"""Small sets of rows on which statuses go wrong: contradictions and near ones, rows in a subspace, thin margins."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from tests.svm.exact_oracle import Floats

Shape = tuple[int, int]
# (generator, n, d) to rows (n, d); the signs of labels and the keys of sequences come later.
Style = Callable[[Generator, int, int], Floats]
TILTS = (0.0, 1e-16, 2e-16, 1e-15, 1e-14, 2e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6)


def random(g: Generator, n: int, d: int) -> Floats:
    rows = g.standard_normal((n, d))
    if g.random() < 0.6:
        rows *= np.sign(rows @ g.standard_normal(d))[:, None]
    return rows


def integers(g: Generator, n: int, d: int) -> Floats:
    rows = g.integers(-2, 3, (n, d)).astype(float)
    if g.random() < 0.5:
        side = rows @ g.integers(-3, 4, d)
        rows *= np.where(side < 0, -1, 1)[:, None]
    return rows


def contradictory(g: Generator, n: int, d: int) -> Floats:
    """The last row is minus a positive sum of others, tilted by little or not at all."""
    n = max(n, 2)
    rows = integers(g, n, d) if g.random() < 0.5 else random(g, n, d)
    used = rows[: int(g.integers(1, min(n, d + 2)))]
    rows[-1] = -(g.integers(1, 4, len(used)) @ used) + g.choice(TILTS) * g.standard_normal(d)
    return rows


def pair(g: Generator, n: int, d: int) -> Floats:
    """x + t e and -x + t e, which (0, .., e) separates; with t < 0 among the pairs nothing does."""
    rows = np.zeros((max(n, 2), d))
    half = len(rows) // 2
    x = random(g, len(rows), d)
    x[:, -1] = 0
    rows[:half], rows[half : 2 * half], rows[2 * half :] = x[:half], -x[:half], x[2 * half :]
    rows[:, -1] = g.choice(TILTS, len(rows)) * (1 if g.random() < 0.5 else g.choice((-1, 1), len(rows)))
    return rows


def subspace(g: Generator, n: int, d: int) -> Floats:
    rank = int(g.integers(1, max(2, min(n, d))))
    if g.random() < 0.5:
        return (g.integers(-2, 3, (n, rank)) @ g.integers(-2, 3, (rank, d))).astype(float)
    return random(g, n, rank) @ g.standard_normal((rank, d))


def duplicates(g: Generator, n: int, d: int) -> Floats:
    rows = random(g, n, d)[g.integers(0, max(1, n // 2), n)]
    rows += g.choice(TILTS, (n, 1)) * g.standard_normal((n, d))
    return rows if g.random() < 0.7 else rows * g.choice((-1.0, 1.0), (n, 1))


def sizes(g: Generator, n: int, d: int) -> Floats:
    rows = (random, integers, contradictory, pair)[g.integers(4)](g, n, d)
    if g.random() < 0.4:
        return rows * 10.0 ** g.uniform(-6, 6, d)
    return rows * 10.0 ** g.uniform(-12, 12, (len(rows), 1))


def thin(g: Generator, n: int, d: int) -> Floats:
    """A margin of 1e-16 to 1e-3, along an axis or rotated."""
    rows = g.standard_normal((n, d))
    rows[:, 0] = 10.0 ** g.uniform(-16, -3)
    if g.random() < 0.3:
        rows[:, 0] *= g.uniform(0, 2, n)
    return rows if g.random() < 0.5 else rows @ np.linalg.qr(g.standard_normal((d, d)))[0]


def zeros(g: Generator, n: int, d: int) -> Floats:
    rows = (random, integers)[g.integers(2)](g, n, d)
    rows[:, g.random(d) < 0.3] = 0
    rows[g.random(n) < 0.1] = 0
    return rows


def tiny_shape(g: Generator) -> Shape:
    return (1, int(g.integers(1, 9))) if g.random() < 0.5 else (int(g.integers(1, 5)), 1)


def any_shape(g: Generator) -> Shape:
    return int(g.integers(1, 13)), int(g.integers(1, 9))


def tall_shape(g: Generator) -> Shape:
    return int(g.integers(8, 25)), int(g.integers(1, 5))


def wide_shape(g: Generator) -> Shape:
    n = int(g.integers(1, 6))
    return n, int(g.integers(n, 13))


def large_shape(g: Generator) -> Shape:
    """Beyond what rational arithmetic is quick for."""
    return int(g.integers(60, 300)), int(g.integers(2, 16))


STYLES: dict[str, tuple[Style, Callable[[Generator], Shape]]] = {
    "random": (random, any_shape),
    "integers": (integers, any_shape),
    "contradictory": (contradictory, any_shape),
    "tilted pairs": (pair, any_shape),
    "subspace": (subspace, any_shape),
    "duplicates": (duplicates, any_shape),
    "sizes": (sizes, any_shape),
    "thin": (thin, any_shape),
    "zeros": (zeros, any_shape),
    "single": (integers, tiny_shape),
    "tall": (contradictory, tall_shape),
    "wide": (contradictory, wide_shape),
}


def any_rows(g: Generator) -> Floats:
    """Rows of some style and shape."""
    style, shape = STYLES[g.choice(list(STYLES))]
    return style(g, *shape(g))
