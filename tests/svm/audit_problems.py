"""Small seeded problems on which statuses go wrong: contradictions, near ones, degenerate rows, every scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.random import Generator

from tests.svm.exact_oracle import Floats

Shape = tuple[int, int]
Style = Callable[[Generator, int, int], Floats]
TILTS = (0.0, 1e-16, 2e-16, 1e-15, 1e-14, 2e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6)
# Powers of two keep exact cancellation: 2**40 is 1e12; 2**-1063 is 1e-320 and 2**996 1e300.
ORDINARY, EXTREME = (-40, 40), (-1063, 990)
BATCH = 8
# What is asked at extreme scales, by the last word of a family's name.
EXTREME_STYLES = ("random", "integers", "contradictory", "tilted pairs", "sizes", "near copies", "classes")
EXTREME_STYLES += ("right-hand sides",)


@dataclass(frozen=True)
class Case:
    """Arguments of one call. door: "attention" | "labels" | "rows" | "kept" | "joint"; numpy arrays and words."""

    family: str
    door: str
    given: dict[str, Any]

    def tensors(self) -> dict[str, Any]:
        """The arguments as the library takes them."""
        return {k: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for k, x in self.given.items()}


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
    rows = g.choice((random, integers, contradictory, pair))(g, n, d)
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
    rows = g.choice((random, integers))(g, n, d)
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


def labels(g: Generator, rows: Floats) -> dict[str, Any]:
    y = g.choice((-1.0, 1.0), len(rows))
    return {"values": rows * y[:, None], "labels": y}


def attention(g: Generator, rows: Floats, queries: bool = False) -> dict[str, Any]:
    """The rows dealt to sequences of T - 1 each: keys are the selected one minus the row, the selected one often 0."""
    others = int(g.integers(1, min(4, len(rows)) + 1))
    n = -(-len(rows) // others)
    filled = np.resize(rows, (n * others, rows.shape[1])).reshape(n, others, -1)
    base = np.zeros((n, 1, rows.shape[1]))
    if g.random() < 0.3:
        base = g.integers(-2, 3, base.shape) * np.abs(rows).max()
    keys = np.concatenate([base, base - filled], axis=1)
    selected = g.integers(0, others + 1, n)
    for i, at in enumerate(selected):
        keys[i, [0, at]] = keys[i, [at, 0]]
    given: dict[str, Any] = {"keys": keys, "selected": selected}
    if queries:
        dq = int(g.integers(1, 4))
        z = g.standard_normal((n, dq)) if g.random() < 0.5 else g.integers(-2, 3, (n, dq)).astype(float)
        given["queries"] = z[g.integers(0, n, n)] if g.random() < 0.4 else z
    return given


def rhs(g: Generator, shape: tuple[int, ...]) -> Floats:
    if g.random() < 0.5:
        return (g.random(shape) < 0.5).astype(float)
    return g.choice((0.0, 0.25, 0.7, 1.0, 3.0, 1e-3), shape)


def with_rhs(g: Generator, queries: bool) -> dict[str, Any]:
    given = attention(g, _mixed_rows(g), queries)
    return given | {"rhs": rhs(g, given["keys"].shape[:2])}


def masked(g: Generator, queries: bool) -> dict[str, Any]:
    given = attention(g, _mixed_rows(g), queries)
    n, T = given["keys"].shape[:2]
    mask = g.random((n, T)) < 0.6
    mask[np.arange(n), given["selected"]] = True
    given["keys"][~mask] = np.nan
    return given | {"mask": mask}


def copies(g: Generator, queries: bool) -> dict[str, Any]:
    """Tokens 1e-16 to 1e-6 from the selected one, some of them equal to it."""
    n, T, d = int(g.integers(1, 7)), int(g.integers(1, 6)), int(g.integers(1, 9))
    keys = g.standard_normal((n, T, d)) if g.random() < 0.7 else g.integers(-2, 3, (n, T, d)).astype(float)
    u = g.standard_normal(d)
    selected = (keys @ u).argmax(1) if g.random() < 0.6 else g.integers(0, T, n)
    for i in range(n):
        for t in np.flatnonzero(g.random(T) < 0.5):
            if t != selected[i]:
                step = -np.abs(g.standard_normal()) * u if g.random() < 0.7 else g.standard_normal(d)
                keys[i, t] = keys[i, selected[i]] + g.choice(TILTS) * step
    given = {"keys": keys, "selected": selected}
    return given | {"queries": g.standard_normal((n, 3))} if queries else given


def classes(g: Generator, _: bool) -> dict[str, Any]:
    K, d, n = int(g.integers(2, 5)), int(g.integers(1, 5)), int(g.integers(1, 10))
    style = STYLES[g.choice(["integers", "duplicates", "subspace", "contradictory", "sizes"])][0]
    x = style(g, n, d)
    y = g.integers(0, K, len(x)) if g.random() < 0.4 else (x @ g.standard_normal((d, K))).argmax(1)
    return {"values": x, "labels": y, "num_classes": K}


def equalities(g: Generator, near: bool) -> dict[str, Any]:
    """Rows of which some are equalities, right-hand sides of any sign; near: the last follows from others, almost."""
    m, d = int(g.integers(1, 9)), int(g.integers(1, 7))
    whole = g.random() < 0.6
    rows = g.integers(-2, 3, (m, d)).astype(float) if whole else g.standard_normal((m, d))
    b = g.integers(-1, 2, m).astype(float) if whole else g.choice((0.0, 1.0, -0.5), m)
    equal = g.random(m) < 0.5
    if near and m > 1:
        weights = g.integers(-2, 3, m - 1)
        rows[-1], b[-1] = weights @ rows[:-1], weights @ b[:-1]
        if g.random() < 0.5:
            rows[-1] += g.choice(TILTS) * g.standard_normal(d)
        else:
            b[-1] += g.choice(TILTS)
    return {"rows": rows, "rhs": b, "equal": equal}


def kept(g: Generator, queries: bool) -> dict[str, Any]:
    n, T, d = int(g.integers(1, 5)), int(g.integers(1, 5)), int(g.integers(1, 7))
    keys = g.integers(-2, 3, (n, T, d)).astype(float) if g.random() < 0.6 else g.standard_normal((n, T, d))
    keep = g.random((n, T)) < 0.35
    keep[np.arange(n), g.integers(0, T, n)] = True
    given = {"keys": keys, "kept": keep}
    return given | {"queries": g.integers(-1, 3, (n, 2)).astype(float)} if queries else given


def joint(g: Generator, queries: bool, limit: str) -> dict[str, Any]:
    given = attention(g, _mixed_rows(g), queries)
    n = len(given["keys"])
    x = STYLES[g.choice(["random", "integers", "thin", "duplicates"])][0](g, n, int(g.integers(1, 7)))
    more = {"norm_ratio": float(10.0 ** g.uniform(-1, 1))} if limit == "rate_coupled" else {}
    return given | labels(g, x) | {"limit": limit} | more


def _mixed_rows(g: Generator) -> Floats:
    style, shape = STYLES[g.choice(list(STYLES))]
    return style(g, *shape(g))


def scaled(case: Case, g: Generator, span: tuple[int, int]) -> Case:
    """The same problem with its data times powers of two, those of a product together inside the span."""
    names = [name for name in ("keys", "rows", "values", "queries") if name in case.given]
    given = dict(case.given)
    for name in names:
        share = 2 if "queries" in given and name != "values" else 1
        given[name] = finite(np.ldexp(given[name], int(g.integers(span[0], span[1] + 1)) // share))
    return replace(case, given=given)


def finite(x: Floats) -> Floats:
    """Entries past 1e300 at 1e300; padding stays NaN."""
    return np.clip(x, -1e300, 1e300)


def mixed_extremes(g: Generator, door: str, entries: bool) -> dict[str, Any]:
    """Entries, or rows, of 1e-320 to 1e300 in one problem."""
    rows = _mixed_rows(g)
    exponents = g.integers(*EXTREME, rows.shape if entries else (len(rows), 1))
    rows = finite(np.ldexp(rows, exponents))
    return labels(g, rows) if door == "labels" else attention(g, rows)


def gold_extremes(g: Generator, door: str) -> dict[str, Any]:
    """Contradictions and separable rows whose squares vanish or overflow."""
    size = float(g.choice((1e-320, 1e-300, 1e-170, 1e-163, 1e-155, 1e155, 1e200, 1e300)))
    kinds: tuple[list[list[float]], ...] = (
        [[1]],
        [[1, 0], [-1, 0]],
        [[1, 2], [-1, -2]],
        [[1, 1], [-1, 1]],
        [[1, 1], [-1, 0]],
        [[3, 1], [-3, 1], [0, 1]],
        [[3, 1], [-3, -1], [0, 1]],
        [[1, 0, 0], [0, 1, 0], [-1, -1, 0]],
    )
    rows = np.array(kinds[int(g.integers(len(kinds)))], dtype=float) * (size if size < 1e300 else size / 3)
    return labels(g, rows) if door == "labels" else attention(g, rows)


Maker = Callable[[Generator], dict[str, Any]]


def _styled(name: str, door: str) -> Maker:
    style, shape = STYLES[name]

    def make(g: Generator) -> dict[str, Any]:
        rows = style(g, *shape(g))
        return labels(g, rows) if door == "labels" else attention(g, rows, door == "queries")

    return make


def ordinary_families() -> dict[str, tuple[str, Maker]]:
    """Name to (door, maker), at scales 1e-12 to 1e12."""
    found: dict[str, tuple[str, Maker]] = {}
    for door in ("labels", "attention", "queries"):
        for name in STYLES:
            found[f"{door}: {name}"] = ("labels" if door == "labels" else "attention", _styled(name, door))
    own: list[tuple[str, str, Callable[..., dict[str, Any]]]] = [
        ("right-hand sides", "attention", with_rhs),
        ("padding", "attention", masked),
        ("near copies", "attention", copies),
        ("kept", "kept", kept),
    ]
    for name, door, maker in own:
        for queries in (False, True):
            words = "queries" if queries else "attention"
            found[f"{words}: {name}"] = (door, lambda g, maker=maker, queries=queries: maker(g, queries))
    found["classes"] = ("labels", lambda g: classes(g, False))
    found["rows: equalities"] = ("rows", lambda g: equalities(g, False))
    found["rows: near equalities"] = ("rows", lambda g: equalities(g, True))
    for limit in ("strict", "relaxed", "rate_coupled"):
        found[f"joint: {limit}"] = ("joint", lambda g, limit=limit: joint(g, bool(g.random() < 0.3), limit))
    return found


def extreme_families() -> dict[str, tuple[str, Maker]]:
    """Name to (door, maker), at scales 1e-320 to 1e300; those named mixed and gold are not scaled again."""
    found = {name: made for name, made in ordinary_families().items() if name.split(": ")[-1] in EXTREME_STYLES}
    for door in ("labels", "attention"):
        for entries in (False, True):
            words = f"{door}: mixed {'entries' if entries else 'rows'}"
            found[words] = (door, lambda g, door=door, entries=entries: mixed_extremes(g, door, entries))
        found[f"{door}: gold"] = (door, lambda g, door=door: gold_extremes(g, door))
    return {f"extreme {name}": made for name, made in found.items()}


def problems(ordinary: int, extreme: int, seed: int) -> Iterator[list[Case]]:
    """About so many cases, in lists: a list of several has one shape and is solved as a batch, too."""
    for count, families, span in ((ordinary, ordinary_families(), ORDINARY), (extreme, extreme_families(), EXTREME)):
        batches = ["batch labels", "batch attention", "batch queries"] if families and span == ORDINARY else []
        each = -(-count // (len(families) + len(batches)))
        for at, (family, (door, make)) in enumerate(families.items()):
            g = np.random.default_rng([seed, span[1], at])
            for _ in range(each):
                case = Case(family, door, make(g))
                yield [case if "mixed" in family or "gold" in family else scaled(case, g, span)]
        for at, family in enumerate(batches):
            g = np.random.default_rng([seed, span[1], 1000 + at])
            for _ in range(-(-each // BATCH)):
                yield batch(g, family, span)


def batch(g: Generator, family: str, span: tuple[int, int]) -> list[Case]:
    """Cases of one shape, of mixed styles."""
    n, d, seed = int(g.integers(2, 9)), int(g.integers(1, 7)), int(g.integers(2**31))
    door, cases = family.split()[-1], []
    for _ in range(BATCH):
        rows = STYLES[g.choice(list(STYLES))][0](g, n, d)
        # The same draws for all instances: the same number of tokens.
        deal = np.random.default_rng(seed)
        given = labels(g, rows) if door == "labels" else attention(deal, rows, door == "queries")
        cases.append(scaled(Case(family, "labels" if door == "labels" else "attention", given), g, span))
    return cases
