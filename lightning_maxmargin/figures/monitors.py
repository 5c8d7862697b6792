"""Figures of a monitor's own numbers, without the directory of a run: how it converges, one number, all heads."""

from __future__ import annotations

import difflib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.figures import style
from lightning_maxmargin.figures.draw import gap_lines, gap_panel, margin_panel, margin_series, mass_panel, mass_series
from lightning_maxmargin.figures.read import Metrics, RunFiles
from lightning_maxmargin.keys import find_key
from lightning_maxmargin.keys_of_heads import NAME, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Heads of a layer up to which each has its thin line beside the layer's median.
MOST_LINES = 16
#: Dots per inch of a picture that stands in a page.
PAGE_DPI = 96


def metrics_of(history: Sequence[Mapping[str, Any]]) -> Metrics:
    """The numbers of a monitor's history as columns; words are left out.

    Example:
        >>> metrics_of([{"step": 1, "norm/head": 2.0, "svm/limit": "strict"}, {"step": 5, "norm/head": None}]).columns
        {'norm/head': array([ 2., nan])}
    """
    names = list(dict.fromkeys(name for row in history for name, x in row.items() if _is_number(x) and name != "step"))
    columns = {n: np.array([row[n] if _is_number(row.get(n)) else np.nan for row in history], float) for n in names}
    return Metrics(np.array([row["step"] for row in history], int), columns)


def _is_number(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


def run_of(last: Mapping[str, Any], history: Sequence[Mapping[str, Any]], message: str = "") -> RunFiles:
    """What the figures and sentences of a report read, of a monitor's numbers."""
    return RunFiles(Path(), "", {**last, "message": message}, metrics_of(history), None, [])


def png(figure: Figure) -> bytes:
    """Its picture, for a page."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=PAGE_DPI)
        return file.getvalue()


def panels_of(metrics: Metrics) -> dict[str, Any]:
    """What there is to draw of a TokenSelector, by name: a function of axes each."""
    lines, margins, mass = gap_lines(metrics), margin_series(metrics), mass_series(metrics)
    found: dict[str, Any] = {}
    if lines:
        found["direction_gap"] = lambda ax: gap_panel(ax, lines)
    if margins:
        found["relative_margin"] = lambda ax: margin_panel(ax, margins)
    if mass:
        found["selected_mass"] = lambda ax: mass_panel(ax, mass)
    return found


def draw_convergence(metrics: Metrics) -> Figure | None:
    """Direction gap against the norm, relative margin and selected mass against the step; None without numbers."""
    panels = panels_of(metrics)
    if not panels:
        return None
    figure = style.new_figure(4.2, width=max(style.WIDTH, 3.6 * len(panels)))
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.values(), strict=True):
        panel(ax)
    style.suptitle(figure, f"{len(metrics.step)} evaluations, to step {int(metrics.step[-1]):,}", columns=len(panels))
    return figure


def draw_key(metrics: Metrics, key: str, against: str | None = None, ax: Axes | None = None) -> Figure:
    """One number against the step or another number.

    Args:
        metrics: of a run.
        key: which.
        against: of the x axis; the step where None.
        ax: where to draw; a new figure where None.

    Raises:
        InputError: there are no such numbers.
    """
    for name in (key, *([] if against is None else [against])):
        if not metrics.has(name):
            raise unknown(name, [k for k in metrics.columns if metrics.has(k)])
    x, y = metrics.series(key, against)
    ax = ax or style.new_figure(3.6).add_subplot()
    ax.plot(x, y, color=style.COLORS["attention"], linewidth=1.9, marker="o" if len(x) <= 5 else None, markersize=4)
    scale = _axes(ax, x, y, key, against)
    ylabel = f"{key} (log)" if _is_gap(key) else key
    style.style_axes(ax, _meaning(key), f"{against or 'training step'}{scale}", ylabel)
    figure: Figure = ax.figure  # type: ignore[assignment]
    return figure


def _meaning(key: str) -> str:
    """What the key means, as far as it can be said without the one before it in the table."""
    found = find_key(key)
    meaning = "" if found is None else found.meaning.split(";")[0].split(":")[0]
    return "" if meaning.startswith(("the same", "likewise", "that of", "of these", "how many have")) else meaning


def _is_gap(key: str) -> bool:
    found = find_key(key)
    return found is not None and found.format == "gap"


def _axes(ax: Axes, x: Any, y: Any, key: str, against: str | None) -> str:
    """Scales of both axes; what the label of x says of its."""
    if _is_gap(key) and (y > 0).any():
        style.log_axis(ax, np.maximum(y, style.FLOOR))
    if against is None:
        style.step_axis(ax, x)
    elif len(x) and x.min() > 0 and x.max() > 3 * x.min():
        ax.set_xscale("log")
    return "" if ax.get_xscale() == "linear" else " (log)"


def unknown(key: str, known: Sequence[str]) -> InputError:
    """That there are no numbers of this name, with the nearest that there are."""
    near = difflib.get_close_matches(key, known, 3, cutoff=0.3)
    hint = f"; near it are {', '.join(near)}" if near else "; nothing was measured yet" if not known else ""
    return InputError(f"plot: no numbers {key!r}{hint}")


def draw_heads_key(metrics: Metrics, key: str, ax: Axes | None = None) -> Figure:
    """A number of all heads against the step: the median of each layer, and thin lines of its heads.

    Args:
        metrics: of a HeadMonitor.
        key: of a head, ``attention/entropy``; or the whole name of one curve.
        ax: where to draw; a new figure where None.

    Raises:
        InputError: there are no such numbers.
    """
    layers: dict[str, list[str]] = {}
    for name in metrics.columns:
        found = NAME.fullmatch(name)
        if found is not None and found[3] == key and metrics.has(name):
            layers.setdefault(found[1] or "heads", []).append(name)
    if not layers:
        if metrics.has(key):
            return draw_key(metrics, key, ax=ax)
        known = {found[3] if (found := NAME.fullmatch(name)) else name for name in metrics.columns}
        raise unknown(key, sorted(known))
    new = ax is None
    ax = ax or style.new_figure(3.8).add_subplot()
    from matplotlib import colormaps

    short = short_names(list(layers))
    for i, (layer, names) in enumerate(layers.items()):
        color = colormaps["viridis"](0.85 * i / max(1, len(layers) - 1))
        columns = np.array([metrics.columns[name] for name in names])
        seen = np.isfinite(columns).any(0)
        for column in columns if len(names) <= MOST_LINES else ():
            ax.plot(metrics.step, column, color=color, linewidth=0.6, alpha=0.35)
        middle = np.nanmedian(columns[:, seen], 0)
        marker = "o" if seen.sum() <= 5 else None
        ax.plot(metrics.step[seen], middle, color=color, linewidth=2.0, label=short[layer], marker=marker, markersize=4)
    style.step_axis(ax, metrics.step)
    scale = "" if ax.get_xscale() == "linear" else " (log)"
    style.style_axes(ax, "", f"training step{scale}", key)
    figure: Figure = ax.figure  # type: ignore[assignment]
    if new:
        style.suptitle(figure, ": ".join(filter(None, (key, _meaning(f"head0/{key}")))), columns=min(4, len(layers)))
    return figure
