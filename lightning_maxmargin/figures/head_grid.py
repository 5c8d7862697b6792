"""What the report shows of a run's attention heads: a grid of all, and what each one looks at, step by step."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

from lightning_maxmargin.figures.words import visible
from lightning_maxmargin.keys_of_heads import layers_of, short_names

#: Heads whose tokens are open when the page opens: those that select most firmly, and not the same place everywhere.
OPEN = 3


class Cell(NamedTuple):
    """A head of the grid; ``share`` is of the SVM's margin, empty where none is certified."""

    number: int
    name: str
    share: str
    opacity: str
    is_open: bool


class Look(NamedTuple):
    """What an open head selects of each sample at the end, as text."""

    name: str
    tokens: list[str]


def heads_context(found: dict[str, Any]) -> dict[str, Any]:
    """What ``heads_grid.html`` draws of ``heads.json``."""
    names, last = _shown_names([str(name) for name in found["heads"]]), found["numbers"][-1]
    opened = sorted(range(len(names)), key=lambda i: _telling(found["seen"][-1][i]), reverse=True)[:OPEN]
    place = {name: i for i, name in enumerate(names)}
    rows = [
        (visible(layer) or "layer", [_cell(place[name], visible(name), last[place[name]], opened) for name in heads])
        for layer, heads in layers_of(names).items()
    ]
    return {
        "rows": rows,
        "width": max(len(cells) for _, cells in rows),
        "told": _told(last),
        "steps": found["steps"],
        "open": [Look(visible(names[i]), _selected(found, i)) for i in opened],
        "data": {**found, "heads": names, "open": opened,
                 "tokens": [[visible(str(t)) for t in sample] for sample in found["tokens"]]},
    }  # fmt: skip


def _shown_names(names: list[str]) -> list[str]:
    """Without what all begin and end with; as they are where two would be one."""
    short = [visible(short_names(names)[name]) for name in names]
    return short if len(set(short)) == len(names) else [visible(name) for name in names]


def _telling(looks: list[list[list[int]]]) -> tuple[int, float]:
    """How many places a head selects over the samples, and how firmly."""
    selected = [look[0] for look in looks if look]
    places = len({t for t, _ in selected})
    return min(places, 2), sum(w for _, w in selected) / max(1, len(selected))


def _cell(index: int, name: str, x: float | None, opened: list[int]) -> Cell:
    if x is None:
        return Cell(index, name, "", "0", index in opened)
    return Cell(
        index,
        name,
        "0" if x == 0 else f"{x:.2f}" if abs(x) >= 0.005 else f"{x:.0e}",
        f"{min(max(x, 0), 1) ** (1 / 3):.3f}",
        index in opened,
    )


def _told(last: list[float | None]) -> str:
    known = [x for x in last if x is not None]
    said = f"{len(known)} of {len(last)} heads have a certified SVM"
    return f"{said}; the median head reaches {statistics.median(known):.2g} of its margin" if known else said


def _selected(found: dict[str, Any], head: int) -> list[str]:
    """The selected token of every sample at the end, with its weight."""
    names = found["tokens"]
    return [
        f"{_token(names, sample, look[0][0])} ({look[0][1]} %)" if look else "—"
        for sample, look in enumerate(found["seen"][-1][head])
    ]


def _token(names: list[list[str]], sample: int, position: int) -> str:
    known = names[sample] if sample < len(names) else []
    return visible(str(known[position])) if position < len(known) else f"token {position}"
