"""Small seeded problems in families: rows of every style through every door of the solvers, at every scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.random import Generator

from tests.svm.audit_styles import STYLES, TILTS, Shape, Style, any_rows, large_shape
from tests.svm.exact_oracle import Floats

# Powers of two keep exact cancellation: 2**40 is 1e12; 2**-1063 is 1e-320 and 2**996 1e300.
ORDINARY, EXTREME = (-40, 40), (-1063, 990)
BATCH = 8
# What is asked at extreme scales, by the last word of a family's name.
EXTREME_STYLES = {"random", "integers", "contradictory", "tilted pairs", "sizes", "near copies", "right-hand sides"}
EXTREME_STYLES |= {"classes"}
WORDS = ("labels", "attention", "queries")
DOORS = {"labels": "labels", "attention": "attention", "queries": "attention"}


@dataclass(frozen=True)
class Case:
    """Arguments of one call. door: "attention" | "labels" | "rows" | "kept" | "joint"; numpy arrays and words."""

    family: str
    door: str
    given: dict[str, Any]

    def tensors(self) -> dict[str, Any]:
        """The arguments as the library takes them."""
        return {k: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for k, x in self.given.items()}


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
    given = attention(g, any_rows(g), queries)
    return given | {"rhs": rhs(g, given["keys"].shape[:2])}


def masked(g: Generator, queries: bool) -> dict[str, Any]:
    given = attention(g, any_rows(g), queries)
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


def classes(g: Generator) -> dict[str, Any]:
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


def joint(g: Generator, limit: str) -> dict[str, Any]:
    given = attention(g, any_rows(g), bool(g.random() < 0.3))
    n = len(given["keys"])
    x = STYLES[g.choice(["random", "integers", "thin", "duplicates"])][0](g, n, int(g.integers(1, 7)))
    more = {"norm_ratio": float(10.0 ** g.uniform(-1, 1))} if limit == "rate_coupled" else {}
    return given | labels(g, x) | {"limit": limit} | more


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
    rows = any_rows(g)
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


@dataclass(frozen=True)
class Family:
    """make: (generator) to the arguments of one call; span: the powers of two they are scaled by, None for none."""

    door: str
    make: Callable[[Generator], dict[str, Any]]
    span: tuple[int, int] | None = ORDINARY
    batch: bool = False


def styled(g: Generator, words: str, style: Style, shape: Callable[[Generator], Shape]) -> dict[str, Any]:
    rows = style(g, *shape(g))
    return labels(g, rows) if words == "labels" else attention(g, rows, words == "queries")


def many_rows(g: Generator, words: str) -> dict[str, Any]:
    def shape(g: Generator) -> Shape:
        n, d = large_shape(g)
        # Times at most three numbers in a query: exact answers in 30 dimensions take half a minute.
        return n, min(d, 5) if words == "queries" else d

    return styled(g, words, STYLES[g.choice(list(STYLES))][0], shape)


def ordinary_families() -> dict[str, Family]:
    """At scales 1e-12 to 1e12."""
    found: dict[str, Family] = {}
    for words in WORDS:
        for name, (style, shape) in STYLES.items():
            found[f"{words}: {name}"] = Family(DOORS[words], partial(styled, words=words, style=style, shape=shape))
        found[f"{words}: many rows"] = Family(DOORS[words], partial(many_rows, words=words))
    own = {"right-hand sides": with_rhs, "padding": masked, "near copies": copies, "kept": kept}
    for words in WORDS[1:]:
        for name, maker in own.items():
            make = partial(maker, queries=words == "queries")
            found[f"{words}: {name}"] = Family("kept" if name == "kept" else "attention", make)
    found["labels: classes"] = Family("labels", classes)
    found["rows: equalities"] = Family("rows", partial(equalities, near=False))
    found["rows: near equalities"] = Family("rows", partial(equalities, near=True))
    for limit in ("strict", "relaxed", "rate_coupled"):
        found[f"joint: {limit}"] = Family("joint", partial(joint, limit=limit))
    for words in WORDS:
        found[f"batch: {words}"] = Family(DOORS[words], lambda g: {}, batch=True)
    return found


def extreme_families() -> dict[str, Family]:
    """At scales 1e-320 to 1e300, those named mixed with all of them in one problem."""
    found = {
        f"extreme {name}": replace(family, span=EXTREME)
        for name, family in ordinary_families().items()
        if family.batch or name.split(": ")[1] in EXTREME_STYLES
    }
    for words in WORDS[:2]:
        for entries in (False, True):
            make = partial(mixed_extremes, door=words, entries=entries)
            name = f"extreme {words}: mixed {'entries' if entries else 'rows'}"
            found[name] = Family(DOORS[words], make, None)
        found[f"extreme {words}: gold"] = Family(DOORS[words], partial(gold_extremes, door=words), None)
    return found


FAMILIES = ordinary_families() | extreme_families()


def cases(name: str, count: int, seed: int) -> Iterator[list[Case]]:
    """About so many problems of one family, in lists: several have one shape and are solved as a batch, too."""
    family = FAMILIES[name]
    g = np.random.default_rng([seed, *name.encode()])
    for _ in range(-(-count // (BATCH if family.batch else 1))):
        made = batch(g, name.split(": ")[1]) if family.batch else [family.make(g)]
        group = [Case(name, family.door, given) for given in made]
        yield [case if family.span is None else scaled(case, g, family.span) for case in group]


def batch(g: Generator, words: str) -> list[dict[str, Any]]:
    """Arguments of one shape, of mixed styles."""
    n, d, seed = int(g.integers(2, 9)), int(g.integers(1, 7)), int(g.integers(2**31))
    made = []
    for _ in range(BATCH):
        rows = STYLES[g.choice(list(STYLES))][0](g, n, d)
        # The same draws for all instances: the same number of tokens.
        deal = np.random.default_rng(seed)
        made.append(labels(g, rows) if words == "labels" else attention(deal, rows, words == "queries"))
    return made
