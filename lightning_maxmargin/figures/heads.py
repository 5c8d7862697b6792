"""All attention heads in one picture, layer by head: the share of its SVM's margin that each reached, and how hard it
selects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_maxmargin.figures import style
from lightning_maxmargin.keys_of_heads import short_names, table_of_heads

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KEY, MASS = "relative_margin/attention", "attention/selected_mass"
#: Where a head attends whatever the input, and the letter of its cell.
SINKS = {"attention/first": "F", "attention/last": "L"}
#: Heads of a layer up to which each cell says its number.
MOST_NUMBERS = 16
#: The smallest share that has a colour of its own: most heads of a trained encoder have 1e-4 to 1e-1.
LEAST = 1e-4
#: Share of the queries from which a head is a sink, and of the attention above which it selects.
ALWAYS, SELECTS = 0.9, 0.5


class Cells(NamedTuple):
    """One number by layer and head, NaN where there is none."""

    layers: list[str]
    numbers: npt.NDArray[np.float64]
    heads: int


def draw_heads(values: Mapping[str, object]) -> Figure | None:
    """Two heatmaps; a head without a certified SVM is hatched, a sink marked. None where the values are of no heads.

    Args:
        values: of a HeadMonitor, or of the summary of a run.
    """
    margins, mass = _cells(values, KEY), _cells(values, MASS)
    if margins is None:
        return None
    known = margins.numbers[np.isfinite(margins.numbers)]
    figure = style.new_figure(1.9 + 0.34 * len(margins.layers))
    columns: Sequence[Any] = figure.subplots(1, 2, squeeze=False)[0]
    margin_heatmap(columns[0], values)
    if mass is None:
        figure.delaxes(columns[1])
    else:
        mass_heatmap(columns[1], values)
        columns[1].set_yticklabels([])
    told = f"{len(known)} of {margins.heads} heads have a certified SVM"
    end = f"; median share of the margin {short_number(float(np.median(known)))}" if len(known) else ""
    style.suptitle(figure, f"Attention heads: {told}{end}", notes=_notes(margins, mass, values))
    return figure


def norm_of(key: str) -> Any:
    """The scale of the colours of a number: logarithmic for shares of a margin, of which most are far below 1."""
    from matplotlib.colors import LogNorm, Normalize

    return LogNorm(LEAST, 1, clip=True) if key == KEY else Normalize(0, 1, clip=True)


def margin_heatmap(ax: Axes, values: Mapping[str, object]) -> None:
    """Draws the share of its SVM's margin that each head reached; nothing where there are none."""
    if (cells := _cells(values, KEY)) is not None:
        floored = np.where(np.isfinite(cells.numbers), np.clip(cells.numbers, LEAST, 1), np.nan)
        _heatmap(ax, cells, floored, norm_of(KEY), "share of its SVM's margin", {})


def mass_heatmap(ax: Axes, values: Mapping[str, object]) -> None:
    """Draws each head's attention on the selected token, sinks marked; nothing where there is none."""
    if (cells := _cells(values, MASS)) is not None:
        marks = _sinks(values, cells)
        _heatmap(ax, cells, cells.numbers, norm_of(MASS), "attention on the selected token", marks)


def _cells(values: Mapping[str, object], key: str) -> Cells | None:
    layers, rows = table_of_heads(values, key)
    if not rows:
        return None
    width = max(map(len, rows))
    numbers = [[np.nan if x is None else x for x in [*row, *[None] * (width - len(row))]] for row in rows]
    return Cells(layers, np.array(numbers, dtype=float), sum(map(len, rows)))


def _heatmap(
    ax: Axes,
    cells: Cells,
    colours: npt.NDArray[np.float64],
    norm: Any,
    title: str,
    marks: Mapping[tuple[int, int], str],
) -> None:
    width = cells.numbers.shape[1]
    ax.patch.set(hatch="////", facecolor="#F4F4F4", edgecolor="#BBBBBB")
    image = ax.imshow(colours, cmap="viridis", norm=norm, aspect="auto", interpolation="nearest")
    ax.set_xticks(range(width), [str(h) for h in range(width)])
    names = short_names(cells.layers)
    ax.set_yticks(range(len(cells.layers)), [names.get(layer) or "layer" for layer in cells.layers])
    ax.set_title(title, fontsize=style.TEXT)
    ax.set_xlabel("head", fontsize=style.SMALL)
    ax.tick_params(labelsize=style.SMALL, length=0)
    for (i, h), x in np.ndenumerate(cells.numbers):
        if np.isfinite(x) and (width <= MOST_NUMBERS or (i, h) in marks):
            colour = "black" if norm(colours[i, h]) > 0.6 else "white"
            number = short_number(float(x)) if width <= MOST_NUMBERS else ""
            text = "\n".join(filter(None, (number, marks.get((int(i), int(h)), ""))))
            ax.text(h, i, text, ha="center", va="center", fontsize=style.SMALL - 2, color=colour, linespacing=0.9)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02, aspect=30)
    bar.ax.tick_params(labelsize=style.SMALL - 1)


def _sinks(values: Mapping[str, object], mass: Cells) -> dict[tuple[int, int], str]:
    """The letters of the heads that select one place whatever the input."""
    marks: dict[tuple[int, int], str] = {}
    for key, letter in SINKS.items():
        shares = _cells(values, key)
        if shares is None or shares.numbers.shape != mass.numbers.shape:
            continue
        for i, h in zip(*np.nonzero((shares.numbers >= ALWAYS) & (mass.numbers > SELECTS)), strict=True):
            marks.setdefault((int(i), int(h)), letter)
    return marks


def _notes(margins: Cells, mass: Cells | None, values: Mapping[str, object]) -> list[str]:
    """What the marks mean, where there are some."""
    marks = set() if mass is None else set(_sinks(values, mass).values())
    meanings = {"F": "F: attends to the first token whatever the input", "L": "L: to the last"}
    notes = [meaning for letter, meaning in meanings.items() if letter in marks]
    if not np.isfinite(margins.numbers).all():
        notes.append("hatched: no certified SVM")
    return ["; ".join(notes)] if notes else []


def short_number(x: float) -> str:
    """In four characters.

    Example:
        >>> short_number(0.034), short_number(0.0004), short_number(0.9999)
        ('.03', '4e-4', '1')
    """
    if x >= 0.995:
        return "1"
    return f"{x:.2f}"[1:] if x >= 0.01 else "0" if x == 0 else f"{x:.0e}".replace("e-0", "e-")
