"""All attention heads in one picture: layer by head, coloured by the share of its SVM's margin that each reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lightning_maxmargin.figures import style
from lightning_maxmargin.keys_of_heads import table_of_heads

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEY = "relative_margin/attention"
#: Heads of a layer up to which each cell says its number.
MOST_NUMBERS = 16


def draw_heads(values: Mapping[str, object]) -> Figure | None:
    """The heatmap; a head without a certified SVM is hatched. None where the values are of no heads.

    Args:
        values: of a HeadMonitor, or of the summary of a run.
    """
    layers, rows = table_of_heads(values, KEY)
    if not rows:
        return None
    width = max(map(len, rows))
    cells = np.array([[np.nan if x is None else x for x in [*row, *[None] * (width - len(row))]] for row in rows])
    figure = style.new_figure(1.6 + 0.34 * len(rows))
    ax = figure.subplots()
    ax.patch.set(hatch="////", facecolor="#F4F4F4", edgecolor="#BBBBBB")
    image = ax.imshow(np.clip(cells, 0, 1), cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    ax.set_xticks(range(width), [str(h) for h in range(width)])
    ax.set_yticks(range(len(layers)), [layer or "layer" for layer in layers])
    ax.set_xlabel("head", fontsize=style.TEXT)
    ax.tick_params(labelsize=style.SMALL, length=0)
    if width <= MOST_NUMBERS:
        for (i, h), x in np.ndenumerate(cells):
            if np.isfinite(x):
                colour = "black" if x > 0.6 else "white"
                ax.text(h, i, f"{x:.2f}", ha="center", va="center", fontsize=style.SMALL - 1, color=colour)
    bar = figure.colorbar(image, ax=ax, pad=0.01)
    bar.set_label("share of the SVM's margin", fontsize=style.SMALL)
    bar.ax.tick_params(labelsize=style.SMALL)
    known = cells[np.isfinite(cells)]
    told = f"{len(known)} of {sum(map(len, rows))} heads have a certified SVM"
    end = f"; median share {np.median(known):.2f}" if len(known) else ""
    style.suptitle(figure, f"Margin of every attention head: {told}{end}")
    return figure
