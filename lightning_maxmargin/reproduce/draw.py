"""Draws the panels of an experiment, as PNG and PDF."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_maxmargin.figures.style import COLORS, SMALL, TEXT, TITLE, new_figure, save, style_axes
from lightning_maxmargin.reproduce.panel import Line, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES: dict[str, Any] = {"dashed": (0, (5, 2)), "ray": (0, (5, 2)), "dotted": (0, (1, 1.5))}
# Okabe and Ito's colours again, for lines that are no limit.
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#B8508E", "#8A6500", "#56B4E9", "#222222", "#999999")
PANEL_INCHES = (4.2, 3.5)


def draw_panels(panels: list[Panel], title: str, path: Path, columns: int | None = None) -> list[Path]:
    """Writes ``path`` with .png and .pdf, each in one move.

    Args:
        panels: at least one.
        title: over all of them.
        path: without a suffix.
        columns: most panels beside each other; 3, or 2 for four panels, if not given.
    """
    figure = _figure(panels, title, min(columns or (2 if len(panels) == 4 else 3), len(panels)))
    return [save(figure, path.with_suffix(suffix)) for suffix in (".png", ".pdf")]


def _figure(panels: list[Panel], title: str, columns: int) -> Figure:
    rows = -(-len(panels) // columns)
    figure = new_figure(PANEL_INCHES[1] * rows + 0.4, max(PANEL_INCHES[0] * columns, 6.0))
    figure.suptitle(title, fontsize=TITLE, fontweight="bold", x=0.01, ha="left")
    for at, panel in enumerate(panels):
        ax = figure.add_subplot(rows, columns, at + 1)
        _draw_image(ax, panel) if panel.image is not None else _draw_lines(ax, panel)
    return figure


def _draw_lines(ax: Axes, panel: Panel) -> None:
    style_axes(ax, panel.title, panel.xlabel, panel.ylabel)
    if "x" in panel.log:
        ax.set_xscale("log")
    if "y" in panel.log:
        ax.set_yscale("log")
    used = 0
    rays = [line for line in panel.lines if line.kind == "ray"]
    for line in (line for line in panel.lines if line.kind != "ray"):
        color = COLORS.get(line.color or "", line.color) or CYCLE[used % len(CYCLE)]
        used += line.color is None
        _draw_line(ax, line, color)
    _few_ticks(ax, panel)
    # After the lines: limits set before them would switch the automatic ones off.
    if panel.xlim is not None:
        ax.set_xlim(panel.xlim)
    if panel.ylim is not None:
        ax.set_ylim(panel.ylim)
    # Rays go to the edge of what the others have set.
    limits = ax.get_xlim(), ax.get_ylim()
    for line in rays:
        u = np.array([line.x[0], line.y[0]])
        far = u / np.linalg.norm(u) * 4 * np.abs(np.array(limits)).max()
        color = COLORS.get(line.color or "", line.color or CYCLE[0])
        ax.plot([0, far[0]], [0, far[1]], color=color, linestyle=DASHES["ray"], linewidth=1.4, label=line.label or None)
    ax.set_xlim(limits[0])
    ax.set_ylim(limits[1])
    if any(line.label for line in panel.lines):
        place: dict[str, Any] = {}
        if panel.legend == "below":
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15), "ncols": 4, "columnspacing": 1.2}
        ax.legend(fontsize=SMALL - 1.5, frameon=True, framealpha=0.8, edgecolor="none", handlelength=2.6, **place)


def _few_ticks(ax: Axes, panel: Panel) -> None:
    """On a logarithmic x axis over few values, those values; automatic ticks of one decade overlap."""
    x = np.unique(np.concatenate([np.asarray(line.x, float).ravel() for line in panel.lines] or [np.zeros(0)]))
    if "x" not in panel.log or not 0 < len(x) <= 9:
        return
    from matplotlib.ticker import NullFormatter

    ax.set_xticks(x, [f"{value:g}" for value in x])
    ax.xaxis.set_minor_formatter(NullFormatter())


def _draw_line(ax: Axes, line: Line, color: str) -> None:
    if line.kind == "dots":
        ax.plot(line.x, line.y, "o", color=color, markersize=3.5, label=line.label or None, zorder=3)
        return
    dash = DASHES.get(line.kind, "-")
    ax.plot(line.x, line.y, color=color, linestyle=dash, linewidth=1.6, label=line.label or None)
    if line.low is not None and line.high is not None:
        ax.fill_between(line.x, line.low, line.high, color=color, alpha=0.18, linewidth=0)
    if line.kind == "arrows":
        ax.plot(line.x[:1], line.y[:1], "o", color=color, markersize=3.5)
        for i in range(line.every, len(line.x) - 1, line.every):
            head = {"arrowstyle": "-|>", "color": color, "lw": 0.8, "mutation_scale": 8}
            ax.annotate("", xytext=(line.x[i], line.y[i]), xy=(line.x[i + 1], line.y[i + 1]), arrowprops=head)


def _draw_image(ax: Axes, panel: Panel) -> None:
    assert panel.image is not None
    picture = ax.imshow(
        panel.image, cmap="cividis", aspect="equal" if panel.square else "auto", interpolation="nearest"
    )
    ax.set_title(panel.title, fontsize=TEXT, loc="left")
    ax.set_xlabel(panel.xlabel, fontsize=TEXT)
    ax.set_ylabel(panel.ylabel, fontsize=TEXT)
    for names, set_ticks in ((panel.columns, ax.set_xticks), (panel.rows, ax.set_yticks)):
        shown = [at for at, name in enumerate(names) if name]
        set_ticks(shown, [names[at] for at in shown], fontsize=SMALL)
    assert ax.figure is not None
    if not panel.digits:
        ax.figure.colorbar(picture, ax=ax).ax.tick_params(labelsize=SMALL)
        return
    middle = (np.nanmin(panel.image) + np.nanmax(panel.image)) / 2
    for (i, j), x in np.ndenumerate(panel.image):
        # Dark ground, light digits.
        ax.text(j, i, f"{x:.3f}", ha="center", va="center", fontsize=SMALL, color="white" if x < middle else "black")
